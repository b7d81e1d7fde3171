"""Angles counted from a first position."""

from __future__ import annotations

import torch

from tokenprune.ops.rotary import turn_back


def test_angles_are_differences_and_the_factor_stays() -> None:
    frequencies = torch.tensor([1.0, 0.1, 0.01])
    positions = torch.arange(3, 9.0)[:, None]
    for factor in (1.0, 1.3):
        cos, sin = factor * (positions * frequencies).cos(), factor * (positions * frequencies).sin()
        turned = turn_back(cos, sin, cos[:1], sin[:1])
        angles = (positions - 3) * frequencies
        torch.testing.assert_close(turned, (factor * angles.cos(), factor * angles.sin()))


def test_the_dtype_is_the_models() -> None:
    cos, sin = torch.ones(2, 4, dtype=torch.bfloat16), torch.zeros(2, 4, dtype=torch.bfloat16)
    assert [part.dtype for part in turn_back(cos, sin, cos[:1], sin[:1])] == [torch.bfloat16] * 2
