"""Which logits are those of a distribution."""

from __future__ import annotations

import math

import pytest
import torch

from tokenprune.ops.finite import is_distribution

ROWS = {
    "finite": ([0.0, 1.0, -2.0], True),
    "some tokens ruled out": ([-math.inf, 1.0, -math.inf], True),
    "all tokens ruled out": ([-math.inf] * 3, False),
    "NaN": ([0.0, math.nan, 1.0], False),
    "NaN and ruled out": ([-math.inf, math.nan, 1.0], False),
    "plus infinity": ([0.0, math.inf, 1.0], False),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_every_row_by_itself(dtype: torch.dtype) -> None:
    logits = torch.tensor([values for values, _ in ROWS.values()], dtype=dtype)
    assert is_distribution(logits).tolist() == [expected for _, expected in ROWS.values()]
    assert is_distribution(logits[:, None]).shape == (len(ROWS), 1)


def test_large_half_precision_logits_are_no_infinity() -> None:
    """Their sum of exponentials would overflow."""
    assert bool(is_distribution(torch.full((1, 4096), 60000.0, dtype=torch.float16)))
