"""Frames of a sample: tokens at the same place in earlier frames, and selection over all frames at once.

In this module a *cell* is a place in a frame: a row and a column.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tokenprune.ops.gather import CHUNK, rows_at
from tokenprune.ops.per_image import PerImage
from tokenprune.ops.topk import best_by_tier, topk_by_group


def number_frames(frame: Tensor, groups: Tensor, count: int) -> Tensor:
    """Number the frames through the sample: those of the second image or video follow those of the first.

    Args:
        frame: Frame of each token within its image or video, long ``[batch, n]``; -1 for tokens without coordinates.
        groups: Image or video of each token, long ``[batch, n]``; -1 for padding.
        count: Images and videos of the sample that has most of them.

    Returns:
        Long ``[batch, n]``; -1 where ``frame`` is.
    """
    frames = frame.new_zeros(len(frame), count + 1)  # the last column takes the padding
    frames = frames.scatter_reduce(1, groups.masked_fill(groups < 0, count), frame + 1, "amax")
    before = frames.cumsum(1) - frames
    return torch.where(frame < 0, frame, frame + before.gather(1, groups.clamp(min=0)))


def frame_sizes(frames: Tensor, grid: Tensor) -> Tensor:
    """(rows, columns) of the frame of each token, long ``[batch, n, 2]``; undefined where ``frames`` is -1.

    Args:
        frames: Frame of each token, numbered through the sample, long ``[batch, n]``; -1 without coordinates.
        grid: (frame, row, column) of each token, long ``[batch, n, 3]``.
    """
    own = frames.clamp(min=0)
    sizes = [
        torch.zeros_like(frames).scatter_reduce(1, own, (coordinate + 1) * (frames >= 0), "amax").gather(1, own)
        for coordinate in grid[..., 1:].unbind(-1)
    ]
    return torch.stack(sizes, -1)


def frame_by_frame(
    images: PerImage,
    numbers: Sequence[Tensor],
    frames: Tensor,
    quotas: Callable[[int, Sequence[int], int], Sequence[int]],
) -> PerImage:
    """The layout of a batch frame by frame. No host-device synchronisation.

    Args:
        images: The layout image by image; no token may have been dropped yet.
        numbers: Frame of each visual token of each sample, long, on the host; -1 for tokens without one.
        frames: The same on the device, long ``[batch, n]``.
        quotas: Quotas of an image's frames from its own quota, the tokens of each of its frames, and its tokens without
            a frame.

    Returns:
        The same tokens with frames in place of images; those without a frame are in none.
    """
    all_sizes, all_quotas = [], []
    for sample, of_sample in enumerate(numbers):
        sizes: list[int] = []
        shares: list[int] = []
        start = 0
        for size, quota in zip(images.host_sizes[sample], images.host_quotas[sample], strict=True):
            own = of_sample[start : start + size]
            counts = own[own >= 0].bincount(minlength=len(sizes))[len(sizes) :].tolist()
            shares += quotas(quota, counts, size - sum(counts))
            sizes += counts
            start += size
        all_sizes.append(sizes)
        all_quotas.append(shares)
    return PerImage(frames, all_sizes, all_quotas)


def earlier(frames: Tensor, sizes: Tensor, grid: Tensor, lag: Tensor) -> Tensor:
    """Index of the token in the same cell of an earlier frame. No host-device synchronisation.

    Frames of different sizes have no cells in common.

    Args:
        frames: Frame of each token, long ``[batch, n]``; -1 for tokens without coordinates.
        sizes: (rows, columns) of each token's frame, long ``[batch, n, 2]``.
        grid: (frame, row, column) of each token, long ``[batch, n, 3]``; the frame is not read.
        lag: Number of frames to go back, long, broadcasts to ``[batch, n]``; 0 gives -1.

    Returns:
        Indices on the axis ``n``, long ``[batch, n]``; -1 where there is no such token.
    """
    key, _ = _keys(frames, sizes, grid)
    wanted = torch.where((frames >= lag) & (lag > 0), key - lag, -1)
    order = key.argsort(dim=1, stable=True)
    keys = key.gather(1, order).contiguous()
    rank = torch.searchsorted(keys, wanted.contiguous()).clamp(max=frames.shape[1] - 1)
    exists = (keys.gather(1, rank) == wanted) & (wanted >= 0)
    return order.gather(1, rank).masked_fill(~exists, -1)


def chains(frames: Tensor, sizes: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Order the tokens by cell, and within a cell by time.

    Args:
        frames: Frame of each token, long ``[batch, n]``; -1 for tokens without coordinates.
        sizes: (rows, columns) of each token's frame, long ``[batch, n, 2]``.
        grid: (frame, row, column) of each token, long ``[batch, n, 3]``; the frame is not read.

    Returns:
        ``order`` and ``follows``: the index of each token in the new order, long ``[batch, n]``; and, in that order,
        whether a token is in the same cell (of a frame of the same size) as the one before it, bool ``[batch, n]``.
    """
    key, base = _keys(frames, sizes, grid)
    key, order = key.sort(dim=1, stable=True)
    cell = torch.div(key, base, rounding_mode="floor")  # -1 for tokens without coordinates
    follows = torch.zeros_like(cell, dtype=torch.bool)
    follows[:, 1:] = (cell[:, 1:] == cell[:, :-1]) & (cell[:, 1:] >= 0)
    return order, follows


def _keys(frames: Tensor, sizes: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Sort keys by frame size, row, column, then frame, long ``[batch, n]`` (-1: no coordinates); and their base."""
    base = torch.maximum(torch.maximum(sizes.amax(), grid.amax()), frames.amax()) + 1  # every digit is below it
    key = torch.zeros_like(frames)
    for digit in (*sizes.unbind(-1), *grid[..., 1:].unbind(-1), frames):
        key = key * base + digit
    return torch.where(frames >= 0, key, -1), base


def cosine_to(states: Tensor, other: Tensor) -> Tensor:
    """Cosine of every token to one other, float32 ``[batch, n]``; undefined where there is none.

    NaN for a token with an entry that is NaN or infinite, also where there is no other token.

    Args:
        states: Floating ``[batch, n, dim]``.
        other: Index of the other token, long ``[batch, n]``; -1 where there is none.
    """
    other = other.clamp(min=0)
    size = max(1, CHUNK // (len(states) * states.shape[2]))
    dots, norms = [], []
    for own, index in zip(states.split(size, dim=1), other.split(size, dim=1), strict=True):
        own = own.float()
        dots.append(rows_at(states, index).float().mul_(own).sum(-1))
        norms.append(torch.linalg.vector_norm(own, dim=-1))
    norm = torch.cat(norms, dim=1).clamp(min=1e-12)
    return torch.cat(dots, dim=1) / (norm * norm.gather(1, other))


def best_of_each(scores: Tensor, groups: Tensor, count: int) -> Tensor:
    """The best token of every image, bool ``[batch, n]``; ties: the earlier position.

    Args:
        scores: Floating ``[batch, n]``.
        groups: Image of each token, long ``[batch, n]``; -1 for padding.
        count: Images of the sample that has most of them.
    """
    return topk_by_group(scores, groups, torch.ones(len(scores), count, dtype=torch.long, device=scores.device))


def best_overall(scores: Tensor, first: Tensor, visual: Tensor, total: Tensor) -> Tensor:
    """The best tokens of every sample over all its images; ties: the earlier position.

    Args:
        scores: Floating ``[batch, n]``.
        first: Tokens that are chosen before all others, bool ``[batch, n]``.
        visual: Entries that are tokens, bool ``[batch, n]``.
        total: Number of tokens to keep of each sample, long ``[batch]``.

    Returns:
        Bool ``[batch, n]``.
    """
    return best_by_tier(torch.where(visual, first.int(), -1), scores, total) & visual


def mean_of_frames(values: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the tokens of each frame, and their number.

    Args:
        values: Floating ``[batch, n, ...]``.
        frames: Frame of each token, long ``[batch, n]``; -1 belongs to no frame.

    Returns:
        Means ``[batch, n, ...]`` and counts ``[batch, n]`` (long), indexed by frame; 0 for frames that do not exist.
    """
    in_frame = frames >= 0
    counts = torch.zeros_like(frames).scatter_add(1, frames.clamp(min=0), in_frame.long())
    wide = (...,) + (None,) * (values.dim() - 2)
    index = frames.clamp(min=0)[wide].expand_as(values)
    sums = torch.zeros_like(values).scatter_add(1, index, values * in_frame[wide])
    return sums / counts.clamp(min=1)[wide], counts
