"""Greedy MAP inference of a determinantal point process (DPP)."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokenprune.ops.greedy import mark_picks, row_reader

#: Gains up to this fraction of the kernel's largest diagonal entry are rounding and count as 0.
NEGLIGIBLE = 1e-5


def unit_range(scores: Tensor, valid: Tensor) -> Tensor:
    """Scale the scores of each image to 0 (lowest) to 1 (highest).

    Args:
        scores: Floating ``[images, n]``.
        valid: Entries that are tokens, bool ``[images, n]``.

    Returns:
        Float32 ``[images, n]``; 0 in an image whose scores are equal, and for padding.
    """
    scores = scores.float()
    low = scores.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    span = scores.masked_fill(~valid, -torch.inf).amax(1, keepdim=True) - low
    return torch.where(valid & (span > 0), (scores - low) / span, 0.0)


def relevance_weights(scores: Tensor, valid: Tensor, theta: float | None) -> Tensor:
    """Weight of each token: the factor on its row and column of the kernel.

    Args:
        scores: Floating ``[images, n]``. They are scaled as by :func:`unit_range`.
        valid: Entries that are tokens, bool ``[images, n]``.
        theta: Trade-off of relevance against diversity, 0 <= theta < 1: the weight is ``exp(a s)`` of the scaled score
            s, with ``a = theta / (2 (1 - theta))``. None: the weight is the scaled score plus 1e-6 (so that no row is
            zero).

    Returns:
        Float32 ``[images, n]``; 0 for padding.
    """
    scaled = unit_range(scores, valid)
    weights = scaled + 1e-6 if theta is None else torch.exp(theta / (2 * (1 - theta)) * scaled)
    return weights.masked_fill(~valid, 0.0)


def standard_weights(scores: Tensor, valid: Tensor, weight: float) -> Tensor:
    """Weight of each token from its standardised score: ``exp(weight z)``.

    Args:
        scores: Floating ``[images, n]``. ``z`` is the score minus the image's mean, divided by its standard deviation
            (of the population); 0 in an image whose scores are equal up to rounding.
        valid: Entries that are tokens, bool ``[images, n]``.
        weight: Factor of ``z``.

    Returns:
        Float32 ``[images, n]``; 0 for padding.
    """
    exact = scores.double().masked_fill(~valid, 0.0)
    count = valid.sum(1, keepdim=True).clamp(min=1)
    mean = exact.sum(1, keepdim=True) / count
    centred = (exact - mean).masked_fill(~valid, 0.0)
    deviation = (centred.square().sum(1, keepdim=True) / count).sqrt()
    rounding = 1e-7 * exact.abs().amax(1, keepdim=True)
    z = torch.where(deviation > rounding, centred / deviation, 0.0)
    return torch.exp(weight * z).masked_fill(~valid, 0.0).float()


def alignment_kernel(states: Tensor, valid: Tensor, gamma: float) -> Tensor:
    """The kernel ``I + gamma (X X^T)^2`` of OTPrune, whose determinant grows as chosen tokens cover the image.

    ``X`` holds the tokens with every *channel* divided by its L2 norm over the tokens of the image. A channel that is 0
    everywhere stays 0.

    Source: "OTPrune: Distribution-Aligned Visual Token Pruning via Optimal Transport", arXiv 2602.20205.

    Args:
        states: Floating ``[images, n, dim]``.
        valid: Entries that are tokens, bool ``[images, n]``; the others count as 0.
        gamma: Weight of the second summand, at least 0.

    Returns:
        Float32 ``[images, n, n]``, symmetric, no eigenvalue below 1. Rows and columns of padding are those of the unit
        matrix.
    """
    tokens = normalize(states.float().masked_fill(~valid[:, :, None], 0.0), dim=1)
    gram = tokens @ tokens.mT
    unit = torch.eye(states.shape[1], dtype=gram.dtype, device=gram.device)
    return torch.baddbmm(unit.expand_as(gram), gram, gram.mT, alpha=gamma)


def greedy_map(kernel: Tensor, valid: Tensor, quotas: Tensor, max_quota: int, negligible: float = NEGLIGIBLE) -> Tensor:
    """Choose tokens of many images at once; each step takes the token that raises the kernel's determinant most.

    The gain of a token is the factor by which it raises the determinant. An incremental Cholesky decomposition keeps
    all gains up to date, with O(max_quota^2 n) operations in total. Ties keep the earlier position. Gains up to
    ``negligible`` times the largest diagonal entry count as 0: when the rank of the kernel is exhausted, the earliest
    tokens fill the quota. No token is taken twice. No host-device synchronisation.

    Source: "Fast Greedy MAP Inference for Determinantal Point Process to Improve Recommendation Diversity",
    arXiv 1709.05135.

    Args:
        kernel: Symmetric, positive semidefinite, floating ``[images, n, n]``.
        valid: Tokens that may be taken, bool ``[images, n]``; at least ``quotas`` of them.
        quotas: Number of tokens to take, long ``[images]``.
        max_quota: Largest quota, as a host integer.
        negligible: Gains up to this share of the largest diagonal entry are rounding. 0 for a kernel of full rank.

    Returns:
        Bool ``[images, n]``.
    """
    gains = kernel.diagonal(dim1=1, dim2=2).masked_fill(~valid, 0.0)
    floor = negligible * gains.amax(1, keepdim=True)
    factor = kernel.new_zeros(len(kernel), max_quota, valid.shape[1])  # one row of the Cholesky factor per step
    blocked = torch.zeros_like(gains).masked_fill_(~valid, -torch.inf)
    row_at = row_reader(kernel)
    picks = []
    for step in range(max_quota):
        score = torch.where(gains > floor, gains, 0.0).add_(blocked)
        pick = score.argmax(1, keepdim=True)
        picks.append(pick)
        blocked.scatter_(1, pick, -torch.inf)
        gain = score.gather(1, pick)
        previous = factor[:, :step]
        at_pick = previous.gather(2, pick[:, None].expand(-1, step, 1))
        residual = torch.baddbmm(row_at(pick)[:, None], at_pick.mT, previous, alpha=-1)[:, 0]
        row = residual.mul_(torch.where(gain > 0, gain.rsqrt(), 0.0))
        factor[:, step] = row
        gains = gains.addcmul(row, row, value=-1)
    return mark_picks(picks, quotas, valid.shape[1])
