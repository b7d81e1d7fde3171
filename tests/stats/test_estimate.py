"""How a mean and its interval are written: rounded once, by the uncertainty."""

from __future__ import annotations

import math

import pytest

from tokenprune.stats.estimate import Estimate


@pytest.mark.parametrize(
    ("mean", "low", "high", "expected"),
    [
        (0.8134, 0.8014, 0.8254, "81.3 ± 1.2"),
        (0.8134, 0.6934, 0.9334, "81 ± 12"),
        (0.8134, 0.8127, 0.8141, "81.3 ± 0.1"),
        (0.8134, 0.8133, 0.8135, "81.3 ± <0.1"),  # never ± 0.0
        (0.98, 0.93, 0.994, "98.0 [93.0, 99.4]"),
        (1.0, 0.7225, 1.0, "100 [72, 100]"),
        (0.5, 0.46, 0.545, "50.0 ± 4.5"),  # the longer arm
        (0.045, 0.002, 0.097, "4.5 [0.2, 9.7]"),  # zero is outside, of 4.5 ± 5.2 it is not
        (0.5, -math.inf, math.inf, "50.0 ± ?"),
        (0.0, 0.0, 0.0, "0.0"),
        (math.nan, -math.inf, math.inf, "unknown"),
    ],
)
def test_the_uncertainty_decides_the_decimals(mean: float, low: float, high: float, expected: str) -> None:
    assert str(Estimate(mean, low, high)) == expected


@pytest.mark.parametrize(("signed", "expected"), [(False, "0 ± 49"), (True, "+0 ± 49")])
def test_zero_has_no_minus(signed: bool, expected: str) -> None:
    assert Estimate(-0.001, -0.49, 0.488).written(signed=signed) == expected


def test_unit_and_sign() -> None:
    found = Estimate(0.01234, 0.0111, 0.01358)
    assert found.written(1, most=4) == "0.0123 ± 0.0012"
    assert found.written(1, most=4, signed=True) == "+0.0123 ± 0.0012"
    assert (-found).written(1, most=2) == "-0.01 ± <0.01"
    assert Estimate(0.02, -0.01, 0.09).written(signed=True) == "+2.0 [-1.0, +9.0]"


def test_ends_and_halves() -> None:
    found = Estimate(-0.2, -0.3, -0.1)
    assert found.beyond_zero
    assert found.half == pytest.approx(0.1)
    assert -found == Estimate(0.2, 0.1, 0.3)
    assert not Estimate.unknown(0.5).known
    assert Estimate.unknown(0.5).half == math.inf
    assert Estimate.unknown(0.5).drawn == (0.5, 0.5)
    assert found.drawn == (-0.3, -0.1)
    assert Estimate.exact(1.0).half == 0
