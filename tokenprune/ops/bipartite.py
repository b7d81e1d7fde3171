"""Bipartite matching of tokens that alternate between two sets: drop near-duplicates, or merge them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from tokenprune.ops.cosine import cosine_similarity

#: Cosines above this value count as 1, so that rounding does not rank exact duplicates.
_DUPLICATE = 1 - 1e-6


def rounds_needed(
    counts: Iterable[tuple[int, int]], max_removed: Callable[[int, int], int], odd_in_first: bool = False
) -> int:
    """Number of rounds that reduce every list to its target length.

    Args:
        counts: Current and target length of each list.
        max_removed: Most entries that one round may remove from a list, as a function of the list's initial and target
            length.
        odd_in_first: Whether the set that loses entries has the extra entry of a list of odd length. If False, the
            other set has it.

    Returns:
        The largest number of rounds over all lists.
    """
    longest = 0
    for length, target in counts:
        limit, rounds = max_removed(length, target), 0
        while length > target:
            length -= min(limit, length - target, (length + odd_in_first) // 2)
            rounds += 1
        longest = max(longest, rounds)
    return longest


def drop_duplicates(
    states: Tensor, order: Tensor, counts: Tensor, targets: Tensor, max_dropped: int, rounds: int
) -> Tensor:
    """Thin out lists of tokens: every round drops the tokens that are most similar to a token of the other set.

    In every round the entries of a list alternate between set A and set B, starting with A. The score of an entry of A
    is its largest cosine similarity to an entry of B. The ``max_dropped`` entries of A with the highest scores are
    dropped. The list of the next round is the rest of A in order of falling score, followed by B. Of equal scores
    (cosines above ``1 - 1e-6`` count as 1) the earlier entry of the list is dropped first. No host-device
    synchronisation.

    Args:
        states: States to compare, floating ``[images, n, dim]``.
        order: The list of each image as a permutation of all entries, long ``[images, n]``.
        counts: Length of each list: only the first ``counts`` entries of ``order`` belong to it, long ``[images]``.
        targets: Number of entries to keep, long ``[images]``, at most ``counts``.
        max_dropped: Most entries that one round drops.
        rounds: Number of rounds, from :func:`rounds_needed`.

    Returns:
        Which entries are kept, bool ``[images, n]``.
    """
    similarity = _round_duplicates(cosine_similarity(states, states))
    place = torch.arange(order.shape[1], device=order.device)
    counts = counts.clone()
    for _ in range(rounds):
        listed = place < counts[:, None]
        in_a, in_b = listed & (place % 2 == 0), listed & (place % 2 == 1)
        token_in_b = torch.zeros_like(in_b).scatter(1, order, in_b)
        score = similarity.masked_fill(~token_in_b[:, None, :], -2.0).amax(-1).gather(1, order)
        # A by falling score, then B in its order, then entries that have left the list
        rank = torch.where(in_a, score, torch.where(in_b, -3.0, -4.0)).argsort(dim=1, descending=True, stable=True)
        dropped = torch.minimum((counts + 1) // 2, counts - targets).clamp(max=max_dropped)
        order = order.gather(1, rank).gather(1, (place + dropped[:, None]) % order.shape[1])
        counts = counts - dropped
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, order, place < targets[:, None])


def soft_matching(keys: Tensor, counts: Tensor, targets: Tensor, max_merged: Tensor, rounds: int) -> Tensor:
    """Merge tokens into clusters by ToMe's bipartite soft matching, round by round.

    In every round the entries of the list alternate between set B and set A, starting with B: in the towers of the
    paper a class token precedes the list, which would be the first entry of A. Every entry of A has an edge to the
    entry of B with the most similar key (the earliest of several). The ``max_merged`` edges with the highest
    similarity merge; of equal edges those of the earlier entries merge first. A merged entry leaves the list, and its
    cluster joins the cluster of the entry of B. The key of a cluster is the mean of its tokens' keys. The list of the
    next round is the rest of A, followed by B, both in order. Cosines above ``1 - 1e-6`` count as 1. No host-device
    synchronisation.

    Args:
        keys: Keys to compare by cosine similarity, floating ``[images, n, dim]``.
        counts: Number of tokens: only the first ``counts`` entries are tokens, long ``[images]``.
        targets: Number of clusters to end with, long ``[images]``, at most ``counts``, and at least 1 where there are
            tokens.
        max_merged: Most tokens that one round merges, long ``[images]``.
        rounds: Number of rounds, from :func:`rounds_needed`.

    Returns:
        For each token the token that represents its cluster, long ``[images, n]``; padding represents itself.
    """
    place = torch.arange(keys.shape[1], device=keys.device)
    # The cosine of a sum equals that of the mean. Sums can be added, so larger clusters weigh more.
    key_sum = keys.float().masked_fill(~(place < counts[:, None])[:, :, None], 0.0)
    token = place.expand(keys.shape[:2])  # the token at each place of the list
    representative = token
    counts = counts.clone()
    for _ in range(rounds):
        a, b = place[1::2], place[0::2]
        similarity = _round_duplicates(cosine_similarity(key_sum[:, 1::2], key_sum[:, 0::2]))
        similarity = similarity.masked_fill(~(b < counts[:, None])[:, None, :], -2.0)
        best, nearest = similarity.max(-1).values, similarity.argmax(-1)
        best = best.masked_fill(a >= counts[:, None], -3.0)
        merge_count = torch.minimum(counts // 2, counts - targets).minimum(max_merged)
        falling = best.argsort(dim=1, descending=True, stable=True)
        merged = torch.zeros_like(falling, dtype=torch.bool)
        merged = merged.scatter(1, falling, torch.arange(len(a), device=a.device) < merge_count[:, None])

        # A matrix product instead of a scattered sum: on a GPU the order of scattered additions is not deterministic.
        member = ((nearest[:, None, :] == torch.arange(len(b), device=b.device)[:, None]) & merged[:, None, :]).float()
        key_sum[:, 0::2] += member @ key_sum[:, 1::2]
        source, target = token[:, 1::2], token[:, 0::2].gather(1, nearest)
        joined = place.expand_as(token).scatter(1, source, torch.where(merged, target, source))
        representative = joined.gather(1, representative)

        # the rest of A, then B, then entries that have left the list
        tier = (place % 2 == 0).long().expand_as(token).masked_fill(place >= counts[:, None], 2)
        tier = torch.where(torch.zeros_like(tier, dtype=torch.bool).index_copy(1, a, merged), 2, tier)
        next_order = tier.argsort(dim=1, stable=True)
        token = token.gather(1, next_order)
        key_sum = key_sum.gather(1, next_order[:, :, None].expand_as(key_sum))
        counts = counts - merge_count
    return representative


def mean_of_clusters(states: Tensor, representative: Tensor, keep: Tensor, valid: Tensor, max_clusters: int) -> Tensor:
    """Replace the state of each cluster's representative by the mean over the cluster's tokens.

    Args:
        states: Floating ``[images, n, dim]``.
        representative: The token that represents each token's cluster, long ``[images, n]``.
        keep: Representatives, bool ``[images, n]``.
        valid: Which entries are tokens, bool ``[images, n]``.
        max_clusters: Largest number of clusters of an image, as a host integer.

    Returns:
        Float32 ``[images, n, dim]``; states where ``keep`` is False are unchanged.
    """
    states = states.float()
    place = keep.int().argsort(dim=1, descending=True, stable=True)[:, :max_clusters]
    member = ((representative[:, None, :] == place[:, :, None]) & valid[:, None, :]).float()
    means = member @ states / member.sum(-1, keepdim=True).clamp(min=1)
    index = place[:, :, None].expand_as(means)
    return states.scatter(1, index, torch.where(keep.gather(1, place)[:, :, None], means, states.gather(1, index)))


def _round_duplicates(similarity: Tensor) -> Tensor:
    return similarity.masked_fill(similarity > _DUPLICATE, 1.0)
