"""Recycling dropped tokens: the best of them, clustered, and every cluster one token."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.dpc_knn import dpc_knn


def recycled(dropped: int) -> int:
    """How many of the dropped tokens are recycled: the best 30 % and one more, none of none."""
    return int(0.3 * dropped) + 1 if dropped else 0


def clusters(tokens: int, quota: int) -> int:
    """How many of ``quota`` survivors of so many tokens are clusters of recycled ones.

    Published is the other direction: so many tokens are kept, and the clusters, one for ten of the recycled and one
    more, come on top. Here the survivors are given: the clusters are the smallest number that agrees with what is
    then dropped, and always leave one token that is kept for itself.
    """
    found, before = 0, -1
    while found != before:  # it can only rise
        before = found
        pool = recycled(tokens - quota + found)
        found = min(pool // 10 + 1, max(quota - 1, 0)) if pool else 0
    return found


def recycle(
    states: Tensor, scores: Tensor, alone: Tensor, pool: Tensor, groups: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """Keep the best tokens, cluster the next best, and put each cluster's mean at its centre.

    Equal scores: the earlier token is the better. Ties in the clustering go to the better token; see
    :func:`tokenprune.ops.dpc_knn.dpc_knn`. No host-device synchronisation.

    Args:
        states: Floating ``[problems, n, dim]``.
        scores: Floating ``[problems, n]``, ``-inf`` where there is no token.
        alone: Tokens kept for themselves, long ``[problems]``.
        pool: The next best, which are clustered, long ``[problems]``.
        groups: Clusters made of them, long ``[problems]``, at most ``pool``.
        most: The largest pool, known to the host.

    Returns:
        What is kept, centres of clusters included, bool ``[problems, n]``; and the states, those of the centres
        replaced by the means of their clusters, as ``states``.
    """
    problems, size, dim = states.shape
    ranked = scores.argsort(dim=1, descending=True, stable=True)
    order = torch.arange(size, device=states.device)
    keep = torch.zeros_like(ranked, dtype=torch.bool).scatter(1, ranked, order < alone[:, None])
    if most == 0:
        return keep, states
    order = order[:most]
    place = ranked.gather(1, (alone[:, None] + order).clamp(max=size - 1))
    index = place[:, :, None].expand(-1, -1, dim)
    centres, means = dpc_knn(states.gather(1, index), order < pool[:, None], groups)
    target = place.masked_fill(~centres, size)  # one place more takes what is no centre
    keep = torch.cat([keep, keep[:, :1]], dim=1).scatter(1, target, True)[:, :size]
    padded = torch.cat([states, states.new_zeros(problems, 1, dim)], dim=1)
    merged = padded.scatter(1, target[:, :, None].expand(-1, -1, dim), means.to(states.dtype))
    return keep, merged[:, :size]
