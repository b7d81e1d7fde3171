"""Greedy max-min diversity: each token taken is the one farthest from all that were taken before it."""

from __future__ import annotations

import torch
from torch import Tensor

#: Distances up to here are rounding: such tokens are duplicates.
SAME = 1e-6


def max_min(distance: Tensor, candidates: Tensor, quotas: Tensor, steps: int) -> Tensor:
    """Choose tokens of many problems at once so that the smallest distance between two of them is large.

    The first is the candidate whose nearest other candidate is farthest; then always the one whose nearest chosen
    token is farthest. Ties keep the earlier position; distances up to ``SAME`` count as 0. No token is taken twice,
    and no host-device synchronisation happens.

    Args:
        distance: Symmetric, floating ``[problems, n, n]``.
        candidates: Tokens that may be taken, bool ``[problems, n]``; at least ``quotas`` of them.
        quotas: How many to take, long ``[problems]``.
        steps: The largest quota, known to the host.

    Returns:
        Bool ``[problems, n]``.
    """
    distance = distance.masked_fill(distance <= SAME, 0.0)
    itself = torch.eye(distance.shape[-1], dtype=torch.bool, device=distance.device)
    nearest = distance.masked_fill(itself | ~candidates[:, None, :], torch.inf).amin(2)
    problem = torch.arange(len(distance), device=distance.device)
    chosen = torch.zeros_like(candidates)
    for step in range(steps):
        pick = nearest.masked_fill(chosen | ~candidates, -torch.inf).argmax(1)
        chosen[problem, pick] |= step < quotas
        reach = distance[problem, pick]
        nearest = reach if step == 0 else torch.minimum(nearest, reach)
    return chosen
