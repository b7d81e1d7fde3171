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


def frame_sizes(frames: Tensor, grid: Tensor) -> Tensor:
    """(rows, columns) of the frame of each token, long ``[batch, n, 2]``; meaningless where ``frames`` is -1.

    Args:
        frames: Frame of each token, counted through the sample, long ``[batch, n]``; -1 has no place.
        grid: (frame, row, column) of each token, long ``[batch, n, 3]``.
    """
    own = frames.clamp(min=0)
    sizes = [
        torch.zeros_like(frames).scatter_reduce(1, own, (cells + 1) * (frames >= 0), "amax").gather(1, own)
        for cells in grid[..., 1:].unbind(-1)
    ]
    return torch.stack(sizes, -1)


def earlier(frames: Tensor, sizes: Tensor, grid: Tensor, lag: Tensor) -> Tensor:
    """Where the same cell of an earlier frame is. No host-device synchronisation.

    Frames with other numbers of rows or columns have no cells in common.

    Args:
        frames: Frame of each token, long ``[batch, n]``; -1 has no place.
        sizes: (rows, columns) of each token's frame, long ``[batch, n, 2]``.
        grid: (frame, row, column) of each token, long ``[batch, n, 3]``; the first is not read.
        lag: How many frames earlier, long, broadcasts to ``[batch, n]``; 0 asks for none.

    Returns:
        Places on the axis ``n``, long ``[batch, n]``; -1 where there is no such token.
    """
    key, _ = _keys(frames, sizes, grid)
    wanted = torch.where((frames >= lag) & (lag > 0), key - lag, -1)
    order = key.argsort(dim=1, stable=True)
    keys = key.gather(1, order).contiguous()
    place = torch.searchsorted(keys, wanted.contiguous()).clamp(max=frames.shape[1] - 1)
    found = (keys.gather(1, place) == wanted) & (wanted >= 0)
    return order.gather(1, place).masked_fill(~found, -1)


def chains(frames: Tensor, sizes: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens cell by cell, each in the order of time.

    Args:
        frames: Frame of each token, long ``[batch, n]``; -1 has no place.
        sizes: (rows, columns) of each token's frame, long ``[batch, n, 2]``.
        grid: (frame, row, column) of each token, long ``[batch, n, 3]``; the first is not read.

    Returns:
        ``order`` and ``follows``: the tokens' places in the new order, long ``[batch, n]``, and whether each of them,
        in that order, is of the same cell (and size of frame) as the one before it, bool ``[batch, n]``.
    """
    key, base = _keys(frames, sizes, grid)
    key, order = key.sort(dim=1, stable=True)
    cell = torch.div(key, base, rounding_mode="floor")  # -1 for what has no place
    follows = torch.zeros_like(cell, dtype=torch.bool)
    follows[:, 1:] = (cell[:, 1:] == cell[:, :-1]) & (cell[:, 1:] >= 0)
    return order, follows


def _keys(frames: Tensor, sizes: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """One number per token, -1 for no place: by frame size, row and column, and then by frame."""
    base = torch.maximum(torch.maximum(sizes.amax(), grid.amax()), frames.amax()) + 1  # every number is below it
    key = torch.zeros_like(frames)
    for part in (*sizes.unbind(-1), *grid[..., 1:].unbind(-1), frames):
        key = key * base + part
    return torch.where(frames >= 0, key, -1), base


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


def rank_within(scores: Tensor, frames: Tensor) -> Tensor:
    """Rank of each token within its frame, 0 for the highest score; ties: the earlier position goes first.

    Args:
        scores: Floating ``[batch, n]``.
        frames: Frame of each token, long ``[batch, n]``; -1 counts as one more frame.

    Returns:
        Long ``[batch, n]``.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    by_frame, regrouped = frames.gather(1, order).sort(dim=1, stable=True)
    rank = torch.arange(scores.shape[1], device=scores.device) - torch.searchsorted(by_frame, by_frame)
    return torch.zeros_like(frames).scatter(1, order.gather(1, regrouped), rank)


def mean_of_frames(values: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the tokens of each frame, and how many these are.

    Args:
        values: Floating ``[batch, n, ...]``.
        frames: Frame of each token, long ``[batch, n]``; -1 is of none.

    Returns:
        Means ``[batch, n, ...]`` and counts ``[batch, n]`` (long) by number of the frame; 0 for frames that are not.
    """
    placed = frames >= 0
    counts = torch.zeros_like(frames).scatter_add(1, frames.clamp(min=0), placed.long())
    wide = (...,) + (None,) * (values.dim() - 2)
    index = frames.clamp(min=0)[wide].expand_as(values)
    sums = torch.zeros_like(values).scatter_add(1, index, values * placed[wide])
    return sums / counts.clamp(min=1)[wide], counts
