"""Accuracies with intervals that respect that questions on one image are not independent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

Z95 = 1.959964


@dataclass(frozen=True)
class Estimate:
    """A mean and the half-width of its 95 % interval."""

    mean: float
    half: float

    @property
    def arms(self) -> tuple[float, float]:
        """How far the interval reaches below and above the mean, within 0 to 1: finite where nothing is known."""
        return min(self.half, self.mean), min(self.half, 1 - self.mean)

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.half:.1f}"


def clustered(values: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """Mean of ``values`` with a cluster-robust 95 % interval.

    The variance is ``G / (G - 1) * sum_g (sum_{i in g} (x_i - mean))^2 / n^2`` over the G clusters: residuals of one
    image add up before they are squared.

    Args:
        values: One number per question.
        clusters: The image of each question.

    Returns:
        The estimate; with a single cluster the half-width is infinite.
    """
    count = len(values)
    if count == 0:
        return Estimate(float("nan"), float("inf"))
    mean = sum(values) / count
    sums: dict[Hashable, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - mean
    groups = len(sums)
    if groups < 2:
        return Estimate(mean, float("inf"))
    variance = groups / (groups - 1) * sum(total**2 for total in sums.values()) / count**2
    return Estimate(mean, Z95 * variance**0.5)
