"""Greedy max-min diversity: each step takes the token that is farthest from all tokens taken before."""

from __future__ import annotations

import torch
from torch import Tensor

#: Distances up to this value are rounding: such tokens are duplicates.
DUPLICATE = 1e-6


def max_min(distance: Tensor, candidates: Tensor, quotas: Tensor, max_quota: int) -> Tensor:
    """Choose tokens of many images at once so that the smallest distance between two chosen tokens is large.

    The first token is the candidate whose nearest other candidate is farthest. Each further token is the one whose
    nearest chosen token is farthest. Ties keep the earlier position. Distances up to ``DUPLICATE`` count as 0. No token
    is taken twice. No host-device synchronisation.

    Args:
        distance: Symmetric, floating ``[images, n, n]``.
        candidates: Tokens that may be taken, bool ``[images, n]``; at least ``quotas`` of them.
        quotas: Number of tokens to take, long ``[images]``.
        max_quota: Largest quota, as a host integer.

    Returns:
        Bool ``[images, n]``.
    """
    distance = distance.masked_fill(distance <= DUPLICATE, 0.0)
    diagonal = torch.eye(distance.shape[-1], dtype=torch.bool, device=distance.device)
    nearest = distance.masked_fill(diagonal | ~candidates[:, None, :], torch.inf).amin(2)
    image = torch.arange(len(distance), device=distance.device)
    chosen = torch.zeros_like(candidates)
    for step in range(max_quota):
        pick = nearest.masked_fill(chosen | ~candidates, -torch.inf).argmax(1)
        chosen[image, pick] |= step < quotas
        to_pick = distance[image, pick]
        nearest = to_pick if step == 0 else torch.minimum(nearest, to_pick)
    return chosen
