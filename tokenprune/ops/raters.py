"""SparseVLM's raters: the text tokens that are most relevant to the visual tokens."""

import torch
from torch import Tensor

from tokenprune.ops.gather import marked_first, rows_at


def raters(embeddings: Tensor, visual_mask: Tensor, text_mask: Tensor, max_candidates: int) -> Tensor:
    """Mark the text tokens with above-average similarity to the visual tokens.

    Candidates are the text tokens after the last visual token. Each visual token has a weight for every candidate: the
    softmax over the candidates of the dot products of their embeddings. A candidate is a rater if its mean weight over
    the visual tokens is above the average over the candidates. If no candidate is (there is only one, or all are
    alike), all candidates are raters. No host-device synchronisation.

    Args:
        embeddings: Floating ``[batch, seq, dim]``.
        visual_mask: Visual tokens, bool ``[batch, seq]``.
        text_mask: Text tokens without padding, bool ``[batch, seq]``.
        max_candidates: Upper bound of the number of candidates of a sample, at least 1, as a host integer.

    Returns:
        Bool ``[batch, seq]``; all False for a sample without candidates.
    """
    order = torch.arange(embeddings.shape[1], device=embeddings.device)
    end = ((order + 1) * visual_mask).amax(1, keepdim=True)
    candidates = text_mask & (order >= end)
    place, is_candidate = marked_first(candidates, max_candidates)
    states = embeddings.float()
    texts = rows_at(states, place)
    # without candidates all weights are NaN, and no comparison with NaN is true
    weights = (states @ texts.transpose(1, 2)).masked_fill(~is_candidate[:, None], -torch.inf).softmax(-1)
    mean = (weights * visual_mask[:, :, None]).sum(1) / visual_mask.sum(1, keepdim=True).clamp(min=1)
    above = is_candidate & (mean > mean.sum(1, keepdim=True) / is_candidate.sum(1, keepdim=True))
    chosen = torch.where(above.any(1, keepdim=True), above, is_candidate)
    return torch.zeros_like(candidates).scatter(1, place, chosen)
