"""Gaussian kernels around a centre, of several widths at once."""

from __future__ import annotations

import torch
from torch import Tensor

WIDTHS = tuple(2.0**power for power in range(-3, 2))


def kernel_sum(states: Tensor, centre: Tensor) -> Tensor:
    """How near each state is to a centre: ``sum_a exp(-|x - c|^2 / 2a)`` over a in 1/8, 1/4, 1/2, 1, 2.

    Args:
        states: Floating ``[..., dim]``.
        centre: Broadcasts to ``states``.

    Returns:
        ``[...]``, between 0 and 5.
    """
    distance = (states - centre).square().sum(-1)
    return torch.stack([torch.exp(-distance / (2 * width)) for width in WIDTHS]).sum(0)


def steady_channels(states: Tensor, real: Tensor, count: int) -> Tensor:
    """The channels in which the tokens of a sample differ least.

    Args:
        states: Floating ``[batch, n, dim]``.
        real: Which entries are tokens, bool ``[batch, n]``.
        count: How many channels to take. Ties: the earlier channel.

    Returns:
        ``[batch, n, count]``.
    """
    weight = real[:, :, None] / real.sum(1).clamp(min=1)[:, None, None]
    mean = (states * weight).sum(1, keepdim=True)
    variance = ((states - mean).square() * weight).sum(1)
    chosen = variance.argsort(dim=1, stable=True)[:, :count]
    return states.gather(2, chosen[:, None].expand(-1, states.shape[1], -1))
