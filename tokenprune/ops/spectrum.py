"""Spatial frequencies of the tokens of a grid."""

import math

import torch
from torch import Tensor

from tokenprune.ops.gather import CHUNK

_REACH = 8.0  # standard deviations of a Gaussian after which float32 holds nothing of it


def high_pass(
    states: Tensor, frames: Tensor, places: Tensor, sizes: Tensor, cutoff: float, largest: int, chunk: int = CHUNK
) -> Tensor:
    """Mean magnitude, over the channels, of what a Gaussian high-pass filter leaves of each token.

    In the two-dimensional discrete Fourier transform of each channel of a frame, the frequency (u, v) is multiplied by
    ``1 - exp(-(u^2 + v^2) / (2 s^2))`` with ``s = cutoff * min(rows // 2, columns // 2)``; a frame of one row or column
    has s = 0 and loses its mean alone. The filter is real and even, so its complement is a smoothing of the frame whose
    weights are products of a row's and a column's. These weights are computed for pairs of tokens of the same frame: no
    size of a frame has to come to the host.

    Args:
        states: Floating ``[images, n, dim]``.
        frames: Frame of each token, long ``[images, n]``; -1 for tokens that are on no grid, padding among them. A
            frame has all of its tokens.
        places: (row, column) of each token, long ``[images, n, 2]``.
        sizes: (rows, columns) of each token's frame, long ``[images, n, 2]``.
        cutoff: Width of the filter.
        largest: Upper bound of the tokens of a frame, as a host integer.
        chunk: Weights that are computed at a time.

    Returns:
        Float32 ``[images, n]``; 0 where ``frames`` is -1.
    """
    values = states.float().masked_fill((frames < 0)[..., None], 0.0)  # padding may hold anything
    width = cutoff * (sizes // 2).amin(-1)
    most = math.ceil(_REACH * cutoff * math.isqrt(largest) / 2)  # the shorter side is at most the root of the area
    frequencies = torch.arange(min(largest // 2, most) + 1, device=states.device)
    rows, columns = (_basis(places[..., axis], sizes[..., axis], width, frequencies) for axis in (0, 1))
    energies = []
    count = max(1, chunk // max(1, frames.numel()))
    for part in torch.arange(frames.shape[1], device=frames.device).split(count):
        weights = (rows[:, part] @ rows.mT) * (columns[:, part] @ columns.mT)
        weights = weights.masked_fill(frames[:, part, None] != frames[:, None], 0.0)
        energies.append((values[:, part] - weights @ values).abs().mean(-1))
    return torch.cat(energies, 1).masked_fill(frames < 0, 0.0)


def _basis(place: Tensor, size: Tensor, width: Tensor, frequencies: Tensor) -> Tensor:
    """Cosines and sines whose products are the weights of a Gaussian low-pass filter along one axis.

    Args:
        place: Row, or column, of each token, long ``[images, n]``.
        size: Rows, or columns, of its frame, long ``[images, n]``.
        width: Standard deviation of the filter in frequencies, ``[images, n]``.
        frequencies: From 0, long ``[frequencies]``; larger ones have no weight.

    Returns:
        Float32 ``[images, n, 2 * frequencies]``.
    """
    size, place = size.clamp(min=1)[..., None], place.clamp(min=0)[..., None]
    gauss = torch.exp(-0.5 * (frequencies / width.float().clamp(min=1e-6)[..., None]).square())
    # a frequency and its negative have the same cosine; only 0 and, of an even size, the highest are their own negative
    times = 2 - (frequencies == 0).int() - (2 * frequencies == size).int()
    weight = torch.where(2 * frequencies <= size, gauss * times / size, 0.0).sqrt()
    angle = (frequencies * place % size) * (2 * math.pi / size)
    return torch.cat([weight * angle.cos(), weight * angle.sin()], -1)
