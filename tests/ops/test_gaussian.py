"""Kernel sums and channels of least variance against loops."""

from __future__ import annotations

import math

import pytest
import torch

from tokenprune.ops.gaussian import kernel_sum, steady_channels


def test_kernel_sum_is_its_formula() -> None:
    states = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 4.0]])
    expected = [sum(math.exp(-d / (2 * a)) for a in (1 / 8, 1 / 4, 1 / 2, 1, 2)) for d in (0, 1, 25)]
    assert kernel_sum(states, torch.zeros(1, 2)).tolist() == pytest.approx(expected)


def test_padding_does_not_count_and_ties_take_the_earlier_channel() -> None:
    """Channels 0 and 2 are constant; the padded last row would give channel 1 the least variance of all."""
    states = torch.tensor([[[1.0, 5.0, 2.0, 0.0], [1.0, 6.0, 2.0, 9.0], [9.0, 5.5, -9.0, 4.5]]])
    valid = torch.tensor([[True, True, False]])
    assert torch.equal(steady_channels(states, valid, 1), states[:, :, :1])
    assert torch.equal(steady_channels(states, valid, 3), states[:, :, [0, 2, 1]])
