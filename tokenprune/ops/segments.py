"""Segments of a video: runs of frames that are alike."""

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad


def segment_frames(means: Tensor, exists: Tensor, threshold: float, fewest: int) -> Tensor:
    """Cut the frames of every sample into segments.

    A segment ends before a frame whose mean has a cosine below the threshold to that of the frame before. If that makes
    fewer than ``fewest`` segments, the cuts with the next lowest cosines are added, as many as there are. Ties: the
    earlier cut. No host-device synchronisation.

    Args:
        means: Mean state of each frame, floating ``[batch, frames, dim]``.
        exists: Frames that a sample has, bool ``[batch, frames]``; the others are behind them.
        threshold: Cosine below which frames are unlike.
        fewest: Segments that a sample has at least, if it has as many frames.

    Returns:
        Number of each frame's segment, rising from 0, long ``[batch, frames]``. Frames that do not exist have that of
        the last one.
    """
    unit = normalize(means.float(), dim=-1)
    cosine = (unit[:, :-1] * unit[:, 1:]).sum(-1).masked_fill(~exists[:, 1:], torch.inf)
    rank = cosine.argsort(dim=1, stable=True).argsort(dim=1)
    cuts = ((cosine < threshold) | (rank < fewest - 1)) & exists[:, 1:]
    return pad(cuts.long().cumsum(1), (1, 0))


def sum_by_segment(values: Tensor, segments: Tensor) -> Tensor:
    """The sum over each frame's segment, at every frame.

    Args:
        values: Long ``[batch, frames]``.
        segments: Segment of each frame, long ``[batch, frames]``.

    Returns:
        Long ``[batch, frames]``.
    """
    return torch.zeros_like(values).scatter_add(1, segments, values).gather(1, segments)
