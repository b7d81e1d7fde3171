"""Intervals of means over questions of which several may be about one picture."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from tokenprune.stats.estimate import Z95, Estimate

#: The squared deviations that Wilson's interval adds to those of a sample.
PRIOR = Z95**2 / 4


def mean(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """Mean of unbounded numbers with a cluster-robust 95 % interval.

    It is right for numbers of any size, such as divergences, with some ten clusters or more. The variance is
    ``G / (G - 1) * sum_g (sum_{i in g} (x_i - mean))^2 / n^2`` over the G clusters. It says nothing where all sums are
    zero; shares and their differences have intervals that hold there, too: :func:`share`, :func:`difference`.

    Args:
        values: One number per question.
        clusters: The picture of each question; None for one of its own each.

    Returns:
        The estimate. The interval is unknown with a single cluster, and where nothing varies.
    """
    sample = _Sample.of(values, clusters)
    if sample.clusters < 2 or not sample.between:
        return Estimate.unknown(sample.mean)
    arm = Z95 * math.sqrt(sample.clusters / (sample.clusters - 1) * sample.between) / sample.count
    return Estimate(sample.mean, sample.mean - arm, sample.mean + arm)


def share(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """Mean of numbers from 0 to 1 with a 95 % interval that holds at 0 and at 1: Wilson's score interval (1927).

    It is right for shares of right answers, for scores and for agreements. The number of questions in it is that of
    independent ones: ``n / d`` with the design effect d, the variance of the mean with clusters over that without. The
    effect is drawn towards that of questions which are all alike within a cluster, the more the fewer values differ;
    where all are equal the number is ``n^2`` over the sum of the squared sizes of the clusters (Kish), which is the
    number of clusters of equal size. The variance of the values stands for ``p (1 - p)``, which it is for values 0 and
    1. One of 1000 all equal values from 100 clusters of ten thus has as wide an interval as one of 100.

    Args:
        values: One number per question, from 0 to 1.
        clusters: The picture of each question; None for one of its own each.

    Returns:
        The estimate. The interval is unknown with a single cluster.
    """
    sample = _Sample.of(values, clusters)
    if sample.clusters < 2:
        return Estimate.unknown(sample.mean)
    size = sample.independent
    total = size + Z95**2
    middle = (size * sample.mean + Z95**2 / 2) / total
    arm = Z95 * math.sqrt(size * sample.within / sample.count + PRIOR) / total
    return _around(sample.mean, middle, arm, 0.0)


def difference(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """Mean of paired differences of shares with a 95 % interval, after Agresti and Min (2005).

    It is right for two methods on the same questions. Half a pair is added to each of the four outcomes, so that the
    interval has a width where few questions never differ. The number of questions in it is that of independent ones, as
    in :func:`share`.

    Args:
        values: The difference on each question, from -1 to 1.
        clusters: The picture of each question; None for one of its own each.

    Returns:
        The estimate; its mean is that of the values. The interval is unknown with a single cluster.
    """
    sample = _Sample.of(values, clusters)
    if sample.clusters < 2:
        return Estimate.unknown(sample.mean)
    size = sample.independent
    middle = size * sample.mean / (size + 2)
    squares = sample.within / sample.count + sample.mean**2
    variance = (size * squares + 1) / (size + 2) - middle**2
    return _around(sample.mean, middle, Z95 * math.sqrt(max(0.0, variance) / (size + 2)), -1.0)


def _around(mean: float, middle: float, arm: float, least: float) -> Estimate:
    """The interval around its middle, from ``least`` to 1; rounding never puts the mean outside."""
    return Estimate(mean, min(mean, max(least, middle - arm)), max(mean, min(1.0, middle + arm)))


@dataclass(frozen=True)
class _Sample:
    """Sums over some values, for their intervals.

    Attributes:
        count: Number of values.
        clusters: Number of clusters.
        squares: Sum of the squared sizes of the clusters.
        mean: The mean; NaN without values.
        within: Sum of the squared deviations from the mean.
        between: Sum over the clusters of the squared sum of their deviations.
    """

    count: int
    clusters: int
    squares: int
    mean: float
    within: float
    between: float

    @classmethod
    def of(cls, values: Sequence[float], clusters: Sequence[Hashable] | None) -> _Sample:
        count = len(values)
        if not count:
            return cls(0, 0, 0, math.nan, 0.0, 0.0)
        # fsum rounds once, so the result does not depend on the order of the values
        mean = math.fsum(values) / count
        deviations: dict[Hashable, list[float]] = defaultdict(list)
        for value, cluster in zip(values, range(count) if clusters is None else clusters, strict=True):
            deviations[cluster].append(value - mean)
        within = math.fsum(deviation**2 for parts in deviations.values() for deviation in parts)
        between = math.fsum(math.fsum(parts) ** 2 for parts in deviations.values())
        squares = sum(len(parts) ** 2 for parts in deviations.values())
        return cls(count, len(deviations), squares, mean, within, between)

    @property
    def independent(self) -> float:
        """The number of independent values that know as much about the mean."""
        size = self.squares / self.count
        small = (self.count - 1) / self.count * self.clusters / (self.clusters - 1)  # both variances are unbiased
        return self.count * (self.within + PRIOR) / (small * self.between + PRIOR * size)
