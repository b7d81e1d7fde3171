"""Means with confidence intervals that treat all questions about one image as one cluster."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

Z95 = 1.959964


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % confidence interval.

    Attributes:
        mean: The mean.
        half: Half of the interval's width.
    """

    mean: float
    half: float

    @property
    def error_bars(self) -> tuple[float, float]:
        """How far the interval reaches below and above the mean, clipped to the range from 0 to 1."""
        return min(self.half, self.mean), min(self.half, 1 - self.mean)

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.half:.1f}"


def clustered(values: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """Mean of ``values`` with a cluster-robust 95 % interval.

    The variance is ``G / (G - 1) * sum_g (sum_{i in g} (x_i - mean))^2 / n^2`` over the G clusters. The residuals of
    one cluster are summed before they are squared.

    Args:
        values: One number per question.
        clusters: The image of each question.

    Returns:
        The estimate. With a single cluster the half-width is infinite; without values the mean is NaN, too.
    """
    count = len(values)
    if count == 0:
        return Estimate(float("nan"), float("inf"))
    # fsum rounds once, so the result does not depend on the order of the values
    mean = math.fsum(values) / count
    residuals: dict[Hashable, list[float]] = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        residuals[cluster].append(value - mean)
    num_clusters = len(residuals)
    if num_clusters < 2:
        return Estimate(mean, float("inf"))
    variance = (
        num_clusters / (num_clusters - 1) * math.fsum(math.fsum(parts) ** 2 for parts in residuals.values()) / count**2
    )
    return Estimate(mean, Z95 * variance**0.5)
