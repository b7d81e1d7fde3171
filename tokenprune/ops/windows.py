"""Windows of the token grid, and the best tokens of each."""

from __future__ import annotations

import torch
from torch import Tensor


def grid_windows(grid: Tensor, valid: Tensor, side: int) -> Tensor:
    """Number the windows that a grid is divided into, ``side`` times ``side`` in each frame.

    Rows and columns are shared out evenly; where they cannot be, windows differ by one row or column.

    Args:
        grid: (frame, row, column), long ``[problems, n, 3]``; negative for tokens that have no place.
        valid: Which entries are tokens, bool ``[problems, n]``.
        side: Windows in each direction.

    Returns:
        Long ``[problems, n]``; tokens that have no place share the window -1.
    """
    placed = valid & (grid >= 0).all(-1)
    extent = grid.masked_fill(~placed[:, :, None], 0).amax(1, keepdim=True)[..., 1:] + 1
    row, column = (grid[..., 1:] * side // extent).unbind(-1)
    return torch.where(placed, (grid[..., 0] * side + row) * side + column, -1)


def best_of_windows(scores: Tensor, windows: Tensor, tokens: Tensor, counts: Tensor) -> Tensor:
    """Mark tokens with high scores, equally many of each window.

    In turns: the best of every window, then the second best, and so on. Of the last turn, when it is not a whole one,
    the highest scores are marked. A window that has no tokens left is passed over. Ties: the earlier position.
    No host-device synchronisation.

    Args:
        scores: Floating ``[problems, n]``.
        windows: Window of each token, long ``[problems, n]``.
        tokens: Which tokens may be marked, bool ``[problems, n]``.
        counts: How many to mark, long ``[problems]``, at most the tokens there are.

    Returns:
        Bool ``[problems, n]``.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    ranked = torch.where(tokens, windows, torch.iinfo(windows.dtype).max).gather(1, order)
    by_window, regrouped = ranked.sort(dim=1, stable=True)
    place = torch.arange(scores.shape[1], device=scores.device)
    turn = place - torch.searchsorted(by_window, by_window)  # in the window, 0 for its best
    turn = torch.zeros_like(turn).scatter(1, regrouped, turn)
    turn = turn.masked_fill(~tokens.gather(1, order), scores.shape[1])
    order = order.gather(1, turn.argsort(dim=1, stable=True))
    return torch.zeros_like(tokens).scatter(1, order, place < counts[:, None])
