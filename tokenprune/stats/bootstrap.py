"""Intervals by bootstrap, for numbers of any size whose distribution may be skewed."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from tokenprune.stats.estimate import Estimate

#: Resamples of the values.
RESAMPLES = 2000


def bootstrap(values: Tensor, seed: int = 0) -> Estimate:
    """Mean of unbounded numbers with the percentile interval of the bootstrap.

    It is right for some twenty independent samples or more, such as divergences of a tune's pictures. The same seed
    draws the same samples, so intervals of several candidates rest on the same resamples. Shares have
    :func:`tokenprune.stats.clustered.share`, which holds where all samples are equal, too.

    Args:
        values: One number per sample, ``[samples]``, at least one.
        seed: Seed of the resamples.

    Returns:
        The mean with the 2.5 % and 97.5 % quantiles of the resampled means. The interval is unknown where nothing
        varies: such samples, or a single one, say nothing about others.
    """
    values = values.double().cpu()
    mean = float(values.mean())
    if bool((values == values[0]).all()):
        return Estimate.unknown(mean)
    means = values[_draws(len(values), seed)].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(mean, low, high)


@cache
def _draws(samples: int, seed: int) -> Tensor:
    """The samples of every resample, int64 ``[RESAMPLES, samples]``."""
    return torch.randint(samples, (RESAMPLES, samples), generator=torch.Generator().manual_seed(seed))
