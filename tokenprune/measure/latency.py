"""Times of paired rounds: medians with quartiles."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Spread:
    """A median with quartiles.

    Attributes:
        median: The median.
        low: The first quartile.
        high: The third quartile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of one or more values; quartiles by linear interpolation."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def to_dict(self) -> dict[str, float]:
        """The fields, JSON-ready."""
        return asdict(self)


def ratios(values: Sequence[float], base: Sequence[float]) -> Spread:
    """The spread of ``values / base``, divided round by round, so that a disturbance of a whole round cancels out."""
    return Spread.of([value / other for value, other in zip(values, base, strict=True)])
