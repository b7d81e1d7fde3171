"""Token recycling (SparseVLM): the best dropped tokens are clustered, and each cluster becomes one token."""

import torch
from torch import Tensor

from tokenprune.ops.dpc_knn import dpc_knn


def recycled_count(dropped: int) -> int:
    """Number of dropped tokens that are recycled: 30 %, rounded down, and one more; 0 if none is dropped."""
    return int(0.3 * dropped) + 1 if dropped else 0


def cluster_count(tokens: int, quota: int) -> int:
    """Number of clusters among the ``quota`` survivors of ``tokens`` tokens.

    The published code fixes the number of kept tokens and adds the clusters to it: one per ten recycled tokens, and
    one more. Here the number of survivors includes the clusters. The result is the smallest number of clusters that
    agrees with the number of dropped tokens which follows from it. At least one survivor is a kept token.
    """
    count, previous = 0, -1
    while count != previous:  # the count never falls, so this ends
        previous = count
        pool = recycled_count(tokens - quota + count)
        count = min(pool // 10 + 1, max(quota - 1, 0)) if pool else 0
    return count


def recycle(
    states: Tensor, scores: Tensor, kept: Tensor, pool: Tensor, clusters: Tensor, max_pool: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the best tokens, cluster the next best, and put each cluster's mean at its centre.

    Equal scores rank the earlier token higher. Ties in the clustering go to the token with the higher rank; see
    :func:`tokenprune.ops.dpc_knn.dpc_knn`. No host-device synchronisation.

    Args:
        states: Floating ``[images, n, dim]``.
        scores: Floating ``[images, n]``, ``-inf`` for padding.
        kept: Number of best tokens, which are kept unchanged, long ``[images]``.
        pool: Number of next best tokens, which are clustered, long ``[images]``.
        clusters: Number of clusters of the pool, long ``[images]``, at most ``pool``.
        max_pool: Largest entry of ``pool``, as a host integer.

    Returns:
        The survivors (kept tokens and cluster centres), bool ``[images, n]``; the states with those of the centres
        replaced by the means of their clusters, shape and dtype of ``states``; and the centre of the cluster that each
        other token of the pool belongs to, long ``[images, n]``, -1 for none.
    """
    images, size, dim = states.shape
    ranked = scores.argsort(dim=1, descending=True, stable=True)
    order = torch.arange(size, device=states.device)
    keep = torch.zeros_like(ranked, dtype=torch.bool).scatter(1, ranked, order < kept[:, None])
    joined = torch.full_like(ranked, -1)
    if max_pool == 0:
        return keep, states, joined
    order = order[:max_pool]
    place = ranked.gather(1, (kept[:, None] + order).clamp(max=size - 1))
    index = place[:, :, None].expand(-1, -1, dim)
    in_pool = order < pool[:, None]
    centres, means, centre = dpc_knn(states.gather(1, index), in_pool, clusters)
    target = place.masked_fill(~centres, size)  # one extra column takes the tokens that are not centres
    keep = torch.cat([keep, keep[:, :1]], dim=1).scatter(1, target, True)[:, :size]
    padded = torch.cat([states, states.new_zeros(images, 1, dim)], dim=1)
    merged = padded.scatter(1, target[:, :, None].expand(-1, -1, dim), means.to(states.dtype))
    recycled = in_pool & ~centres & (clusters > 0)[:, None]
    joined = torch.cat([joined, joined[:, :1]], dim=1)
    joined = joined.scatter(1, place.masked_fill(~recycled, size), place.gather(1, centre))[:, :size]
    return keep, merged[:, :size], joined
