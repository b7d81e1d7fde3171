"""A mean with its 95 % interval, and how both are written."""

from __future__ import annotations

import math
from dataclasses import dataclass

#: Standard normal quantile of a two-sided interval of 95 %.
Z95 = 1.959964
#: Arms of an interval that differ by no more than this share of the longer one are written as ``±`` the longer one.
EVEN = 0.2


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval.

    Attributes:
        mean: The mean; NaN where it is unknown.
        low: Lower end of the interval; minus infinity where the data say nothing about it.
        high: Upper end of the interval; infinity where the data say nothing about it.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def unknown(cls, mean: float = math.nan) -> Estimate:
        """A mean whose interval is unknown."""
        return cls(mean, -math.inf, math.inf)

    @classmethod
    def exact(cls, mean: float) -> Estimate:
        """A number that holds by definition, e.g. the gain of a method over itself."""
        return cls(mean, mean, mean)

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.high - self.low)

    @property
    def half(self) -> float:
        """Half of the interval's width; infinite where the interval is unknown."""
        return (self.high - self.low) / 2

    @property
    def beyond_zero(self) -> bool:
        """Whether zero is outside of the interval."""
        return self.low > 0 or self.high < 0

    @property
    def drawn(self) -> tuple[float, float]:
        """The ends of the interval in a chart; the mean where the interval is unknown."""
        return (self.low, self.high) if self.known else (self.mean, self.mean)

    def __neg__(self) -> Estimate:
        return Estimate(-self.mean, -self.high, -self.low)

    def __str__(self) -> str:
        return self.written()

    def written(self, factor: float = 100, most: int = 1, signed: bool = False) -> str:
        """Write the mean and its interval: ``81.3 ± 1.2``, or with both ends ``98.0 [93.0, 99.4]`` where it is uneven.

        The uncertainty decides the decimals: the longer arm of the interval has two significant digits, and the mean as
        many decimals. An arm that would be 0 is ``<`` the last digit. An unknown interval is ``± ?``. Both ends are
        there, too, where the longer arm would say something else about zero than :attr:`beyond_zero`.

        Args:
            factor: What all numbers are multiplied by; 100 for percent.
            most: The largest number of decimals, and the number where no interval decides it.
            signed: Whether positive numbers have a sign.
        """
        if not math.isfinite(self.mean):
            return "unknown"
        mean, low, high = (factor * value for value in (self.mean, self.low, self.high))
        sign = "+z" if signed else "z"  # never -0
        if not self.known:
            return f"{mean:{sign}.{most}f} ± ?"
        if low == high:
            return f"{mean:{sign}.{most}f}"
        long, short = sorted((mean - low, high - mean), reverse=True)
        digits = max(0, min(most, 1 - math.floor(math.log10(long))))
        least = 10.0**-digits
        if long - short <= EVEN * long and self.beyond_zero == (abs(mean) > long):
            arm = f"{long:.{digits}f}" if long >= least / 2 else f"<{least:.{digits}f}"
            return f"{mean:{sign}.{digits}f} ± {arm}"
        return f"{mean:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"
