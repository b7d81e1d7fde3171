"""Intervals by bootstrap: how sure a mean over pictures is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

#: Resamples of the pictures.
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval.

    Attributes:
        mean: The mean over the samples.
        low: 2.5 % of the resampled means are below it.
        high: 2.5 % of the resampled means are above it.
    """

    mean: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether zero is inside."""
        return self.low <= 0 <= self.high


def bootstrap(values: Tensor, seed: int = 0) -> Interval:
    """The mean of values with the percentile interval of the bootstrap.

    The same seed draws the same samples, so intervals of several candidates rest on the same resamples.

    Args:
        values: One number per sample, ``[samples]``, at least one.
        seed: Seed of the resamples.

    Returns:
        The interval. A single sample says nothing about others: its interval is infinite.
    """
    values = values.double().cpu()
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, float("-inf"), float("inf"))
    means = values[_draws(len(values), seed)].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(mean, low, high)


@cache
def _draws(samples: int, seed: int) -> Tensor:
    """The samples of every resample, int64 ``[RESAMPLES, samples]``."""
    return torch.randint(samples, (RESAMPLES, samples), generator=torch.Generator().manual_seed(seed))
