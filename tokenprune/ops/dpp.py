"""Greedy MAP inference of a determinantal point process (DPP)."""

from __future__ import annotations

import torch
from torch import Tensor

#: A token whose gain is at most this share of the kernel's largest diagonal entry adds nothing but rounding.
NOTHING = 1e-5


def relevance_weights(scores: Tensor, valid: Tensor, theta: float | None) -> Tensor:
    """What each token's row and column of the kernel are multiplied by.

    Args:
        scores: Floating ``[problems, n]``; per problem scaled to 0 (lowest) to 1 (highest), all 0 where they are equal.
        valid: Entries that are tokens, bool ``[problems, n]``.
        theta: Share of relevance against diversity, 0 <= theta < 1: the weight is ``exp(a s)`` with
            ``a = theta / (2 (1 - theta))``. None takes the scaled score itself (plus 1e-6, so that no row vanishes).

    Returns:
        Float32 ``[problems, n]``; 0 where padding.
    """
    scores = scores.float()
    low = scores.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
    span = scores.masked_fill(~valid, -torch.inf).amax(1, keepdim=True) - low
    scaled = torch.where(span > 0, (scores - low) / span, 0.0)
    weights = scaled + 1e-6 if theta is None else torch.exp(theta / (2 * (1 - theta)) * scaled)
    return weights.masked_fill(~valid, 0.0)


def greedy_map(kernel: Tensor, valid: Tensor, quotas: Tensor, steps: int) -> Tensor:
    """Choose tokens of many problems at once, each step the one that raises the kernel's determinant most.

    The determinant's factor for every token ("gain") is kept up to date by an incremental Cholesky decomposition:
    O(steps^2 n) operations in all. Ties keep the earlier position; gains of at most ``NOTHING`` times the largest
    diagonal entry count as 0, so that once the kernel's rank is used up the earliest tokens fill the quota. No token
    is taken twice, and no host-device synchronisation happens.

    Source: "Fast Greedy MAP Inference for Determinantal Point Process to Improve Recommendation Diversity",
    arXiv 1709.05135.

    Args:
        kernel: Symmetric, positive semidefinite, floating ``[problems, n, n]``.
        valid: Tokens that may be taken, bool ``[problems, n]``; at least ``quotas`` of them.
        quotas: How many to take, long ``[problems]``.
        steps: The largest quota, known to the host.

    Returns:
        Bool ``[problems, n]``.
    """
    gains = kernel.diagonal(dim1=1, dim2=2).masked_fill(~valid, 0.0)
    floor = NOTHING * gains.amax(1, keepdim=True)
    problem = torch.arange(len(kernel), device=kernel.device)
    factor = kernel.new_zeros(steps, *gains.shape)  # a row of the Cholesky factor per step
    chosen = torch.zeros_like(valid)
    for step in range(steps):
        gains = torch.where(gains > floor, gains, 0.0)
        pick = gains.masked_fill(chosen | ~valid, -torch.inf).argmax(1)
        chosen[problem, pick] |= step < quotas
        gain = gains[problem, pick][:, None]
        before = factor[:step]
        rest = kernel[problem, pick] - torch.einsum("tp,tpn->pn", before[:, problem, pick], before)
        factor[step] = torch.where(gain > 0, rest * gain.clamp(min=1e-30).rsqrt(), 0.0)
        gains = gains - factor[step].square()
    return chosen
