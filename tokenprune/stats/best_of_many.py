"""What the best of many candidates is worth: its mean without the gain from having been picked."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from tokenprune.stats.clustered import share
from tokenprune.stats.estimate import Estimate

#: Resamples of the samples.
RESAMPLES = 200


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
    draws = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(seed)).tolist()
    left_out: list[list[float]] = [[] for _ in range(count)]
    for drawn in draws:
        values = worth(drawn)
        for sample in set(range(count)).difference(drawn):
            left_out[sample].append(values[sample])
    return share([statistics.fmean(values) for values in left_out if values])
