"""A paired test for races: which candidates are clearly worse than another one on the same samples."""

import torch
from torch import Tensor

#: Up to so many samples every pattern of signs is tried; with more, :data:`PATTERNS` random ones.
ALL_PATTERNS = 11
PATTERNS = 4000


def clearly_worse(losses: Tensor, level: float, seed: int = 0) -> Tensor:
    """Mark the candidates whose mean loss is clearly larger than that of some other candidate.

    For each candidate c the hypothesis is that no other candidate is better. The statistic is the largest, over the
    others l, of ``sum_i d_il / sqrt(sum_i d_il^2)`` with the paired differences ``d_il = loss_ic - loss_il``. If c is
    as good as all others, the differences of one sample could as well have the other sign, all of them together. The
    distribution of the statistic under these flips gives the p-value, so comparing with many others costs no error: the
    best candidate is marked with a probability of about ``level``, however many there are. This is exact where
    differences are symmetric about zero.

    Args:
        losses: ``[candidates, samples]``, finite.
        level: Largest p-value of a marked candidate.
        seed: Seed of the random patterns of signs, which are used from 12 samples on.

    Returns:
        Bool ``[candidates]``. With fewer than two samples nothing is marked.
    """
    candidates, samples = losses.shape
    marked = torch.zeros(candidates, dtype=torch.bool)
    if samples < 2 or candidates < 2:
        return marked
    losses = losses.double().cpu()
    signs = _patterns(samples, seed)
    for number in range(candidates):
        differences = losses[number] - losses  # [others, samples]
        norms = differences.square().sum(1).sqrt()
        differences = differences[norms > 0] / norms[norms > 0, None]
        if not len(differences):
            continue
        observed = differences.sum(1).max()
        if observed <= 0:
            continue
        flipped = (signs @ differences.T).amax(1)
        reached = int((flipped >= observed - 1e-9).sum())
        exact = samples <= ALL_PATTERNS  # then one of the patterns is the observed one
        marked[number] = (reached + (not exact)) / (len(signs) + (not exact)) <= level
    return marked


def _patterns(samples: int, seed: int) -> Tensor:
    """Signs, float64 ``[patterns, samples]``."""
    if samples <= ALL_PATTERNS:
        numbers = torch.arange(2**samples)
        bits = numbers[:, None] >> torch.arange(samples) & 1
    else:
        bits = torch.randint(2, (PATTERNS, samples), generator=torch.Generator().manual_seed(seed))
    return 1.0 - 2.0 * bits.double()
