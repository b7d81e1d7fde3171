"""Sums of Gaussian kernels of several widths around a centre, and the channels with the least variance."""

import torch
from torch import Tensor

WIDTHS = tuple(2.0**power for power in range(-3, 2))


def kernel_sum(states: Tensor, centre: Tensor) -> Tensor:
    """Similarity of each state x to a centre c: ``sum_a exp(-|x - c|^2 / 2a)`` over a in 1/8, 1/4, 1/2, 1, 2.

    Args:
        states: Floating ``[..., dim]``.
        centre: Broadcasts to ``states``.

    Returns:
        Floating ``[...]``, between 0 and 5.
    """
    distance = (states - centre).square().sum(-1)
    return torch.stack([torch.exp(-distance / (2 * width)) for width in WIDTHS]).sum(0)


def steady_channels(states: Tensor, valid: Tensor, count: int) -> Tensor:
    """The ``count`` channels with the least variance over the tokens of a sample.

    Args:
        states: Floating ``[batch, n, dim]``.
        valid: Entries that are tokens, bool ``[batch, n]``.
        count: Number of channels. Ties: the earlier channel.

    Returns:
        ``[batch, n, count]``, dtype of ``states``.
    """
    weight = valid[:, :, None] / valid.sum(1).clamp(min=1)[:, None, None]
    mean = (states * weight).sum(1, keepdim=True)
    variance = ((states - mean).square() * weight).sum(1)
    chosen = variance.argsort(dim=1, stable=True)[:, :count]
    return states.gather(2, chosen[:, None].expand(-1, states.shape[1], -1))
