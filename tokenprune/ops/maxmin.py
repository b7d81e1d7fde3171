"""Greedy max-min diversity: each step takes the token that is farthest from all tokens taken before."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import threshold

from tokenprune.ops.greedy import mark_picks

#: Distances up to this value are rounding: such tokens are duplicates.
DUPLICATE = 1e-6


def max_min(
    distance: Tensor, candidates: Tensor, quotas: Tensor, max_quota: int, weights: Tensor | None = None
) -> Tensor:
    """Choose tokens of many images at once so that the smallest distance between two chosen tokens is large.

    The first token is the candidate whose nearest other candidate is farthest. Each further token is the one whose
    nearest chosen token is farthest. Ties keep the earlier position. Distances up to ``DUPLICATE`` count as 0. No token
    is taken twice. With weights, the distances of a token that is to be taken are multiplied by its weight. No
    host-device synchronisation.

    Args:
        distance: Symmetric, floating ``[images, n, n]``.
        candidates: Tokens that may be taken, bool ``[images, n]``; at least ``quotas`` of them.
        quotas: Number of tokens to take, long ``[images]``.
        max_quota: Largest quota, as a host integer.
        weights: Weight of each token, floating ``[images, n]``; may be negative. None for equal weights.

    Returns:
        Bool ``[images, n]``.
    """
    distance = threshold(distance, DUPLICATE, 0.0)
    if weights is not None:
        distance = distance * weights[:, None, :]
    # a token's distance to itself and to what is no candidate is never the smallest
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    distance.masked_fill_(~(candidates[:, None, :] & candidates[:, :, None]), torch.inf)
    # distance to the nearest chosen token: infinite before the first choice; -inf for what cannot be taken (any more)
    flat, first = distance.flatten(0, 1), torch.arange(len(distance), device=distance.device) * distance.shape[1]
    nearest = distance.new_full(candidates.shape, torch.inf).masked_fill_(~candidates, -torch.inf)
    score = torch.minimum(nearest, distance.amin(1))  # a column is a token to be taken
    picks = []
    for _ in range(max_quota):
        pick = score.argmax(1, keepdim=True)
        picks.append(pick)
        score = nearest = torch.minimum(nearest.scatter_(1, pick, -torch.inf), flat.index_select(0, pick[:, 0] + first))
    return mark_picks(picks, quotas, candidates.shape[1])
