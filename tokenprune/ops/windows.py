"""Windows of the token grid and the best tokens of each; tokens with high scores, and their neighbours on the grid."""

import torch
from torch import Tensor

from tokenprune.ops.gather import rows_at
from tokenprune.ops.topk import best_by_tier, rank_within


def grid_windows(grid: Tensor, valid: Tensor, side: int) -> Tensor:
    """Divide each frame of a grid into ``side`` times ``side`` windows and number these.

    Rows and columns are divided evenly; where that leaves a rest, windows differ by one row or column.

    Args:
        grid: (frame, row, column), long ``[images, n, 3]``; negative for tokens without coordinates.
        valid: Entries that are tokens, bool ``[images, n]``.
        side: Windows in each direction.

    Returns:
        Window of each token, long ``[images, n]``; -1 for tokens without coordinates.
    """
    located, extent = _located(grid, valid)
    row, column = (grid[..., 1:] * side // extent).unbind(-1)
    return torch.where(located, (grid[..., 0] * side + row) * side + column, -1)


def sized_windows(grid: Tensor, valid: Tensor, size: int) -> Tensor:
    """Divide each frame of a grid into windows of ``size`` times ``size`` tokens and number these.

    Rows and columns that are left belong to the last windows, which are larger then. A side shorter than ``size`` has
    one window.

    Args:
        grid: (frame, row, column), long ``[images, n, 3]``; negative for tokens without coordinates.
        valid: Entries that are tokens, bool ``[images, n]``.
        size: Tokens of a window in each direction.

    Returns:
        Window of each token, long ``[images, n]``; -1 for tokens without coordinates.
    """
    located, extent = _located(grid, valid)
    number = (extent // size).clamp(min=1)
    row, column = torch.minimum(grid[..., 1:] // size, number - 1).unbind(-1)
    height, width = number.unbind(-1)
    return torch.where(located, (grid[..., 0] * height + row) * width + column, -1)


def best_of_windows(scores: Tensor, windows: Tensor, tokens: Tensor, counts: Tensor) -> Tensor:
    """Choose the tokens with the highest scores, but at most the same number from each window.

    A window gives at most the count divided by the number of windows, rounded up. If the number of windows divides the
    count, all give equally many; if not, windows with low scores give fewer. If windows have too few tokens to reach
    the count, the tokens with the highest scores among the others fill up. Windows without tokens to choose from do not
    count; tokens in no window (-1) come after all others. Ties: the earlier position. No host-device synchronisation.

    Args:
        scores: Floating ``[images, n]``.
        windows: Window of each token, long ``[images, n]``.
        tokens: Tokens that may be chosen, bool ``[images, n]``.
        counts: Number of tokens to choose, long ``[images]``, at most those that may be chosen.

    Returns:
        Bool ``[images, n]``.
    """
    located = tokens & (windows >= 0)
    rank = rank_within(scores, torch.where(located, windows, -1))
    number = ((rank == 0) & located).sum(1).clamp(min=1)
    limit = (counts + number - 1) // number
    # in a window and within its limit; chosen to fill up; in no window; not to be chosen
    tiers = torch.where(located, 3 - (rank >= limit[:, None]).long(), tokens.long())
    return best_by_tier(tiers, scores, counts)


def _located(grid: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens that have coordinates, ``[images, n]``, and each image's height and width, ``[images, 1, 2]``."""
    located = valid & (grid >= 0).all(-1)
    return located, grid.masked_fill(~located[:, :, None], 0).amax(1, keepdim=True)[..., 1:] + 1


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
