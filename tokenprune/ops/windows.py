"""Windows of the token grid, and selection of the best tokens of each."""

from __future__ import annotations

import torch
from torch import Tensor


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
    order = scores.argsort(dim=1, descending=True, stable=True)
    located = (tokens & (windows >= 0)).gather(1, order)
    ranked = torch.where(located, windows.gather(1, order), torch.iinfo(windows.dtype).max)
    by_window, regrouped = ranked.sort(dim=1, stable=True)
    index = torch.arange(scores.shape[1], device=scores.device)
    rank = index - torch.searchsorted(by_window, by_window)  # in the window, 0 for its best
    rank = torch.zeros_like(rank).scatter(1, regrouped, rank)
    number = ((rank == 0) & located).sum(1).clamp(min=1)
    limit = (counts + number - 1) // number
    # in a window and within its limit; chosen to fill up; in no window; not to be chosen
    tier = torch.where(located, (rank >= limit[:, None]).long(), torch.where(tokens.gather(1, order), 2, 3))
    order = order.gather(1, tier.argsort(dim=1, stable=True))
    return torch.zeros_like(tokens).scatter(1, order, index < counts[:, None])


def _located(grid: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens that have coordinates, ``[images, n]``, and each image's height and width, ``[images, 1, 2]``."""
    located = valid & (grid >= 0).all(-1)
    return located, grid.masked_fill(~located[:, :, None], 0).amax(1, keepdim=True)[..., 1:] + 1
