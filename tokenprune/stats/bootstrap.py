"""Resamples: intervals of numbers whose distribution may be skewed, and what the best of many candidates is worth."""

import statistics
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from tokenprune.stats.clustered import share
from tokenprune.stats.estimate import Estimate

#: Resamples of the values of an interval.
RESAMPLES = 2000
#: Resamples on which a choice is repeated.
CHOICES = 200


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
    means = values[_draws(RESAMPLES, len(values), seed)].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(mean, low, high)


@cache
def _draws(count: int, samples: int, seed: int) -> Tensor:
    """The samples of every resample, int64 ``[count, samples]``."""
    return torch.randint(samples, (count, samples), generator=torch.Generator().manual_seed(seed))


def corrected(count: int, worth: Callable[[Sequence[int]], Sequence[float]], seed: int = 0) -> Estimate:
    """Estimate what a choice of the best keeps on new samples, from the samples that it was made on.

    The best of many candidates looks better on the samples that picked it than it is. So the choice is repeated on
    resamples, drawn with replacement, and judged on the samples that each resample left out (some 37 % of all). The
    values of a sample are averaged over the resamples without it.

    Source: "Bootstrapping the out-of-sample predictions for efficient and accurate cross-validation",
    arXiv 1708.07180 (bootstrap bias correction). The interval, that of :func:`tokenprune.stats.clustered.share` over
    the samples' averages, is ours.

    Args:
        count: Number of samples.
        worth: Makes the choice on some samples, given by number with repetitions, and returns the values of what was
            chosen on all samples, each from 0 to 1.
        seed: Seed of the resamples.

    Returns:
        The mean over the samples with a 95 % interval; unknown with fewer than two samples.
    """
    if count < 2:
        return Estimate.unknown()
    left_out: list[list[float]] = [[] for _ in range(count)]
    for drawn in _draws(CHOICES, count, seed).tolist():
        values = worth(drawn)
        for sample in set(range(count)).difference(drawn):
            left_out[sample].append(values[sample])
    return share([statistics.fmean(values) for values in left_out if values])
