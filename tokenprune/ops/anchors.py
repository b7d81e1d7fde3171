"""Tokens with high scores, their neighbours on the grid, and others to fill up."""

from __future__ import annotations

import torch
from torch import Tensor


def anchors_and_neighbours(scores: Tensor, grid: Tensor, valid: Tensor, counts: Tensor, most: int) -> Tensor:
    """Mark each problem's highest-scored tokens and what touches them.

    Neighbours share an edge on the grid: above, below, left, right, within the frame. Ties keep the earlier position.

    Args:
        scores: Floating ``[problems, n]``.
        grid: (frame, row, column), long ``[problems, n, 3]``; negative for tokens that have no place.
        valid: Which entries are tokens, bool ``[problems, n]``.
        counts: How many anchors, long ``[problems]``.
        most: The largest of them, known to the host.

    Returns:
        2 for an anchor, 1 for a neighbour that is none, 0 for others, -1 for padding: long ``[problems, n]``.
    """
    order = scores.masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :most]
    real = torch.arange(most, device=order.device) < counts[:, None]
    anchor = torch.zeros_like(valid).scatter(1, order, real)
    apart = (grid.gather(1, order[:, :, None].expand(-1, -1, 3))[:, :, None] - grid[:, None]).abs()
    placed = (grid >= 0).all(-1) & valid
    touch = (apart[..., 0] == 0) & (apart[..., 1:].sum(-1) == 1)
    touch = touch & (real & placed.gather(1, order))[:, :, None] & placed[:, None]
    tiers = torch.maximum(2 * anchor.long(), touch.any(1).long())
    return tiers.masked_fill(~valid, -1)


def best_by_tier(tiers: Tensor, scores: Tensor, quotas: Tensor) -> Tensor:
    """Mark the ``quotas`` best of each problem: by tier, within a tier by score, then the earlier position.

    Args:
        tiers: Long ``[problems, n]``.
        scores: Floating ``[problems, n]``.
        quotas: How many to mark, long ``[problems]``.

    Returns:
        Bool ``[problems, n]``.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, tiers.gather(1, order).argsort(dim=1, descending=True, stable=True))
    first = torch.arange(tiers.shape[1], device=tiers.device) < quotas[:, None]
    return torch.zeros_like(first).scatter(1, order, first)
