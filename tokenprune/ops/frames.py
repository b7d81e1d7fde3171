"""Frames of a sample: which token is the same cell some frames earlier, and what is kept over all frames at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokenprune.ops.topk import topk_by_group


def number_frames(frame: Tensor, groups: Tensor, count: int) -> Tensor:
    """Frames counted through the sample: those of the second image or video follow those of the first.

    Args:
        frame: Frame of each token within its image or video, long ``[batch, n]``; -1 has no place.
        groups: Image or video of each token, long ``[batch, n]``; -1 for padding.
        count: Images and videos of the sample that has most.

    Returns:
        Long ``[batch, n]``; -1 where ``frame`` is.
    """
    frames = frame.new_zeros(len(frame), count + 1)  # one place more takes the padding
    frames = frames.scatter_reduce(1, groups.masked_fill(groups < 0, count), frame + 1, "amax")
    before = frames.cumsum(1) - frames
    return torch.where(frame < 0, frame, frame + before.gather(1, groups.clamp(min=0)))


def earlier(frames: Tensor, grid: Tensor, lag: Tensor) -> Tensor:
    """Where the same cell of an earlier frame is. No host-device synchronisation.

    Frames with other numbers of rows or columns have no cells in common.

    Args:
        frames: Frame of each token, long ``[batch, n]``; -1 has no place.
        grid: (frame, row, column) of each token, long ``[batch, n, 3]``; the first is not read.
        lag: How many frames earlier, long, broadcasts to ``[batch, n]``; 0 asks for none.

    Returns:
        Places on the axis ``n``, long ``[batch, n]``; -1 where there is no such token.
    """
    base = torch.maximum(grid.amax(), frames.amax()) + 1  # every number is below it: keys are unique
    cell = (grid[..., 1] * base + grid[..., 2]) * base
    placed = frames >= 0
    key = torch.where(placed, cell + frames, -1)
    wanted = torch.where(placed & (lag > 0) & (frames >= lag), cell + frames - lag, -1)
    order = key.argsort(dim=1, stable=True)
    keys = key.gather(1, order).contiguous()
    place = torch.searchsorted(keys, wanted.contiguous()).clamp(max=frames.shape[1] - 1)
    found = (keys.gather(1, place) == wanted) & (wanted >= 0)
    place = order.gather(1, place)
    for cells in grid[..., 1:].unbind(-1):
        last = torch.full_like(frames, -1).scatter_reduce(1, frames.clamp(min=0), cells, "amax")
        last = last.gather(1, frames.clamp(min=0))
        found &= last == last.gather(1, place)
    return place.masked_fill(~found, -1)


def cosine_to(states: Tensor, other: Tensor) -> Tensor:
    """Cosine of every token to one other, float32 ``[batch, n]``; meaningless where there is none.

    Args:
        states: Floating ``[batch, n, dim]``.
        other: Place of the other token, long ``[batch, n]``; -1 where there is none.
    """
    unit = normalize(states.float(), dim=-1)
    return (unit * unit.gather(1, other.clamp(min=0)[:, :, None].expand_as(unit))).sum(-1)


def best_of_each(scores: Tensor, groups: Tensor, count: int) -> Tensor:
    """The best token of every image, bool ``[batch, n]``; ties: the earlier position.

    Args:
        scores: Floating ``[batch, n]``.
        groups: Image of each token, long ``[batch, n]``; -1 for padding.
        count: Images of the sample that has most.
    """
    return topk_by_group(scores, groups, torch.ones(len(scores), count, dtype=torch.long, device=scores.device))


def best_overall(scores: Tensor, first: Tensor, visual: Tensor, total: Tensor) -> Tensor:
    """The best tokens of every sample, whatever image they are of; ties: the earlier position.

    Args:
        scores: Floating ``[batch, n]``.
        first: Tokens that go before all others, bool ``[batch, n]``.
        visual: Which entries are tokens, bool ``[batch, n]``.
        total: How many to keep of each sample, long ``[batch]``.

    Returns:
        Bool ``[batch, n]``.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    tier = torch.where(visual, first.int(), -1).gather(1, order)
    order = order.gather(1, tier.argsort(dim=1, descending=True, stable=True))
    chosen = torch.arange(scores.shape[1], device=scores.device) < total[:, None]
    return torch.zeros_like(visual).scatter(1, order, chosen) & visual
