"""Windows of the token grid, and selection of the best tokens of each."""

from __future__ import annotations

import torch
from torch import Tensor


def grid_windows(grid: Tensor, valid: Tensor, side: int) -> Tensor:
    """Divide each frame of a grid into ``side`` times ``side`` windows and number these.

    Rows and columns are divided evenly; where that leaves a rest, windows differ by one row or column.

    Args:
        grid: (frame, row, column), long ``[images, n, 3]``; negative for tokens without coordinates.
        valid: Which entries are tokens, bool ``[images, n]``.
        side: Windows in each direction.

    Returns:
        Window of each token, long ``[images, n]``; -1 for tokens without coordinates.
    """
    located = valid & (grid >= 0).all(-1)
    extent = grid.masked_fill(~located[:, :, None], 0).amax(1, keepdim=True)[..., 1:] + 1
    row, column = (grid[..., 1:] * side // extent).unbind(-1)
    return torch.where(located, (grid[..., 0] * side + row) * side + column, -1)


def best_of_windows(scores: Tensor, windows: Tensor, tokens: Tensor, counts: Tensor) -> Tensor:
    """Choose tokens with high scores, the same number from each window.

    Tokens are chosen in turns: the best of every window, then the second best of every window, and so on. A last turn
    that the count cuts short takes its highest scores. Windows without tokens left are skipped. Ties: the earlier
    position. No host-device synchronisation.

    Args:
        scores: Floating ``[images, n]``.
        windows: Window of each token, long ``[images, n]``.
        tokens: Which tokens may be chosen, bool ``[images, n]``.
        counts: Number of tokens to choose, long ``[images]``, at most those that may be chosen.

    Returns:
        Bool ``[images, n]``.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    ranked = torch.where(tokens, windows, torch.iinfo(windows.dtype).max).gather(1, order)
    by_window, regrouped = ranked.sort(dim=1, stable=True)
    index = torch.arange(scores.shape[1], device=scores.device)
    turn = index - torch.searchsorted(by_window, by_window)  # rank in the window, 0 for its best
    turn = torch.zeros_like(turn).scatter(1, regrouped, turn)
    turn = turn.masked_fill(~tokens.gather(1, order), scores.shape[1])
    order = order.gather(1, turn.argsort(dim=1, stable=True))
    return torch.zeros_like(tokens).scatter(1, order, index < counts[:, None])
