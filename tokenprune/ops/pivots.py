"""Selection of the tokens that are least similar to a few pivot tokens."""

import torch
from torch import Tensor

from tokenprune.ops.cosine import cosine_similarity


def least_similar(states: Tensor, candidates: Tensor, pivots: Tensor, present: Tensor, counts: Tensor) -> Tensor:
    """Let each pivot in turn take the least similar tokens that no earlier pivot has taken.

    The pivots of an image take equal numbers of tokens; the remainder goes one each to its first pivots. Ties keep the
    earlier position. No host-device synchronisation.

    Args:
        states: Floating ``[images, n, dim]``.
        candidates: Tokens that may be taken, bool ``[images, n]``; at least ``counts`` of them.
        pivots: States of the pivots, floating ``[images, m, dim]``.
        present: Pivots that an image has, bool ``[images, m]``.
        counts: Number of tokens to take, long ``[images]``; 0 where no pivot is present.

    Returns:
        Bool ``[images, n]``.
    """
    pivot_count = present.sum(1, keepdim=True).clamp(min=1)
    extra = present.cumsum(1) <= counts[:, None] % pivot_count
    pivot_quotas = (counts[:, None] // pivot_count + extra.long()).masked_fill(~present, 0)
    similarity = cosine_similarity(pivots, states)
    taken = torch.zeros_like(candidates)
    for to_pivot, quota in zip(similarity.unbind(1), pivot_quotas.unbind(1), strict=True):
        order = to_pivot.masked_fill(taken | ~candidates, torch.inf).argsort(dim=1, stable=True)
        selected = torch.arange(order.shape[1], device=order.device) < quota[:, None]
        taken = taken | torch.zeros_like(candidates).scatter(1, order, selected)
    return taken
