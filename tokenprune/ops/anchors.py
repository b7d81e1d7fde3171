"""Anchors (tokens with high scores), their neighbours on the token grid, and selection tier by tier."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.gather import rows_at


def anchors_and_neighbours(scores: Tensor, grid: Tensor, valid: Tensor, counts: Tensor, max_count: int) -> Tensor:
    """Mark the highest-scored tokens of each image ("anchors") and the tokens next to them.

    The neighbours of a token are the tokens above, below, left and right of it in the same frame. Of equal scores the
    earlier token is the anchor.

    Args:
        scores: Floating ``[images, n]``.
        grid: (frame, row, column) of each token, long ``[images, n, 3]``; negative for tokens that are not on the grid.
        valid: Entries that are tokens, bool ``[images, n]``.
        counts: Number of anchors, long ``[images]``.
        max_count: Largest entry of ``counts``, as a host integer.

    Returns:
        Tier of each token, long ``[images, n]``: 2 for an anchor, 1 for a neighbour that is not an anchor, 0 for other
        tokens, -1 for padding.
    """
    order = scores.masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :max_count]
    is_anchor = torch.arange(max_count, device=order.device) < counts[:, None]
    anchor = torch.zeros_like(valid).scatter(1, order, is_anchor)
    offset = (rows_at(grid, order)[:, :, None] - grid[:, None]).abs()
    on_grid = (grid >= 0).all(-1) & valid
    adjacent = (offset[..., 0] == 0) & (offset[..., 1:].sum(-1) == 1)
    adjacent = adjacent & (is_anchor & on_grid.gather(1, order))[:, :, None] & on_grid[:, None]
    tiers = torch.maximum(2 * anchor.long(), adjacent.any(1).long())
    return tiers.masked_fill(~valid, -1)


def best_by_tier(tiers: Tensor, scores: Tensor, quotas: Tensor) -> Tensor:
    """Mark the ``quotas`` best tokens of each image: highest tier first, then highest score, then earliest position.

    Args:
        tiers: Long ``[images, n]``.
        scores: Floating ``[images, n]``.
        quotas: Number of tokens to mark, long ``[images]``.

    Returns:
        Bool ``[images, n]``.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, tiers.gather(1, order).argsort(dim=1, descending=True, stable=True))
    selected = torch.arange(tiers.shape[1], device=tiers.device) < quotas[:, None]
    return torch.zeros_like(selected).scatter(1, order, selected)
