"""Text tokens that the visual tokens point to."""

from __future__ import annotations

import torch
from torch import Tensor


def raters(embeddings: Tensor, visual_mask: Tensor, text_mask: Tensor, most: int) -> Tensor:
    """Mark the text tokens that visual tokens resemble more than the average of the text tokens.

    Candidates are the text tokens after the last visual token. Every visual token spreads a weight of one over them, by
    a softmax of the dot products with their embeddings; raters are the candidates whose mean weight, over the visual
    tokens, is above the average of these means. Where none is (one candidate, or all alike) all of them rate.

    Args:
        embeddings: Floating ``[batch, seq, dim]``.
        visual_mask: Visual tokens, bool ``[batch, seq]``.
        text_mask: Text tokens, no padding, bool ``[batch, seq]``.
        most: The host's bound on the candidates of a sample, at least 1.

    Returns:
        Bool ``[batch, seq]``; none in a sample without candidates. No host-device synchronisation.
    """
    order = torch.arange(embeddings.shape[1], device=embeddings.device)
    end = ((order + 1) * visual_mask).amax(1, keepdim=True)
    candidates = text_mask & (order >= end)
    place = (~candidates).int().argsort(dim=1, stable=True)[:, :most]
    present = candidates.gather(1, place)
    states = embeddings.float()
    texts = states.gather(1, place[:, :, None].expand(-1, -1, states.shape[2]))
    # without candidates all weights are NaN, and nothing is above them
    weights = (states @ texts.transpose(1, 2)).masked_fill(~present[:, None], -torch.inf).softmax(-1)
    mean = (weights * visual_mask[:, :, None]).sum(1) / visual_mask.sum(1, keepdim=True).clamp(min=1)
    above = present & (mean > mean.sum(1, keepdim=True) / present.sum(1, keepdim=True))
    chosen = torch.where(above.any(1, keepdim=True), above, present)
    return torch.zeros_like(candidates).scatter(1, place, chosen)
