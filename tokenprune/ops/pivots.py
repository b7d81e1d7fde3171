"""Tokens least like a few pivots."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.cosine import cosine_similarity


def least_similar(states: Tensor, free: Tensor, pivots: Tensor, present: Tensor, counts: Tensor) -> Tensor:
    """Each pivot in turn takes the tokens least like it from those that none has taken before.

    A problem's count is shared evenly between the pivots that it has; what is left over goes one each to the first
    of them. Ties keep the earlier position. No host-device synchronisation.

    Args:
        states: Floating ``[problems, n, dim]``.
        free: Tokens that may be taken, bool ``[problems, n]``; at least ``counts`` of them.
        pivots: Floating ``[problems, m, dim]``.
        present: Which pivots a problem has, bool ``[problems, m]``.
        counts: How many tokens to take, long ``[problems]``; 0 where no pivot is present.

    Returns:
        Bool ``[problems, n]``.
    """
    sharers = present.sum(1, keepdim=True).clamp(min=1)
    extra = present.cumsum(1) <= counts[:, None] % sharers
    shares = (counts[:, None] // sharers + extra.long()).masked_fill(~present, 0)
    similarity = cosine_similarity(pivots, states)
    taken = torch.zeros_like(free)
    for alike, share in zip(similarity.unbind(1), shares.unbind(1), strict=True):
        order = alike.masked_fill(taken | ~free, torch.inf).argsort(dim=1, stable=True)
        first = torch.arange(order.shape[1], device=order.device) < share[:, None]
        taken = taken | torch.zeros_like(free).scatter(1, order, first)
    return taken
