"""Bipartite matching of tokens that alternate between two sets: dropping near-duplicates, or merging them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from tokenprune.ops.cosine import cosine_similarity

#: Cosines at least this large count as 1: rounding must not decide between exact duplicates.
_SAME = 1 - 1e-6


def rounds_needed(counts: Iterable[tuple[int, int]], most: Callable[[int, int], int], whole: bool = False) -> int:
    """In how many rounds every list is cut down to its target.

    Args:
        counts: Entries of each list and how many are to be left.
        most: The most that a round may remove of a list, given its first two numbers.
        whole: The set that loses entries has the odd one of an odd list (else the other set has it).

    Returns:
        The largest number of rounds over all lists.
    """
    longest = 0
    for left, target in counts:
        limit, rounds = most(left, target), 0
        while left > target:
            left -= min(limit, left - target, (left + whole) // 2)
            rounds += 1
        longest = max(longest, rounds)
    return longest


def drop_duplicates(states: Tensor, order: Tensor, counts: Tensor, targets: Tensor, most: int, rounds: int) -> Tensor:
    """Thin out lists of tokens: again and again drop those that are most like a token of the other set.

    In every round the entries of a list alternate between two sets, the first belongs to set A. A's entry scores the
    largest cosine to an entry of set B; of A the ``most`` entries with the highest scores are dropped. The next round's
    list is what A has left, by falling score, followed by B. Equal scores (cosines above ``1 - 1e-6`` are all 1): the
    earlier in the list goes first. No host-device synchronisation.

    Args:
        states: What is compared, floating ``[problems, n, dim]``.
        order: Each list, a permutation of all entries, long ``[problems, n]``.
        counts: So many first entries of ``order`` make up the list, long ``[problems]``.
        targets: How many are to be left, long ``[problems]``, at most ``counts``.
        most: The most that are dropped in a round.
        rounds: Rounds to make, from :func:`rounds_needed`.

    Returns:
        Which entries are left, bool ``[problems, n]``.
    """
    similarity = _snapped(cosine_similarity(states, states))
    place = torch.arange(order.shape[1], device=order.device)
    counts = counts.clone()
    for _ in range(rounds):
        listed = place < counts[:, None]
        in_a, in_b = listed & (place % 2 == 0), listed & (place % 2 == 1)
        other = torch.zeros_like(in_b).scatter(1, order, in_b)
        score = similarity.masked_fill(~other[:, None, :], -2.0).amax(-1).gather(1, order)
        # A by falling score, then B as it is, then what is no longer in the list
        rank = torch.where(in_a, score, torch.where(in_b, -3.0, -4.0)).argsort(dim=1, descending=True, stable=True)
        dropped = torch.minimum((counts + 1) // 2, counts - targets).clamp(max=most)
        order = order.gather(1, rank).gather(1, (place + dropped[:, None]) % order.shape[1])
        counts = counts - dropped
    return torch.zeros_like(order, dtype=torch.bool).scatter(1, order, place < targets[:, None])


def soft_matching(keys: Tensor, counts: Tensor, targets: Tensor, most: Tensor, rounds: int) -> Tensor:
    """Merge tokens into clusters, step by step, as ToMe does.

    In every step the list's entries alternate between two sets; the second entry is the first of set A, since a class
    token stands in front of the list in the towers that the paper merges in. Every entry of A has an edge to the entry
    of B that it is most like (the earliest of several); the ``most`` highest edges are merged, of equal ones those of
    the earlier entries. A merged entry leaves the list, its cluster joins that of the entry of B; the key of a cluster
    is the mean of its tokens' keys. The next list is what A has left, followed by B, both in order. Cosines above
    ``1 - 1e-6`` are all 1. No host-device synchronisation.

    Args:
        keys: What is compared, by cosine, floating ``[problems, n, dim]``.
        counts: So many first entries are tokens, long ``[problems]``.
        targets: How many clusters are to be left, long ``[problems]``, at most ``counts`` and 1 at least where there
            are tokens.
        most: The most that are merged in one step, long ``[problems]``.
        rounds: Steps to make, from :func:`rounds_needed`.

    Returns:
        For each token the one that its cluster was merged into, and which stands for it, long ``[problems, n]``;
        itself for entries that are no tokens.
    """
    place = torch.arange(keys.shape[1], device=keys.device)
    # the sum has the direction of the mean; merging adds it up, and larger clusters so weigh more
    total = keys.float().masked_fill(~(place < counts[:, None])[:, :, None], 0.0)
    token = place.expand(keys.shape[:2])  # which token stands at each place of the list
    owner = token
    counts = counts.clone()
    for _ in range(rounds):
        a, b = place[1::2], place[0::2]
        likeness = _snapped(cosine_similarity(total[:, 1::2], total[:, 0::2]))
        likeness = likeness.masked_fill(~(b < counts[:, None])[:, None, :], -2.0)
        best, nearest = likeness.max(-1).values, likeness.argmax(-1)
        best = best.masked_fill(a >= counts[:, None], -3.0)
        number = torch.minimum(counts // 2, counts - targets).minimum(most)
        falling = best.argsort(dim=1, descending=True, stable=True)
        merged = torch.zeros_like(falling, dtype=torch.bool)
        merged = merged.scatter(1, falling, torch.arange(len(a), device=a.device) < number[:, None])

        # a product and not a scattered sum: on a GPU the order of scattered additions, and so the last bit, is chance
        member = ((nearest[:, None, :] == torch.arange(len(b), device=b.device)[:, None]) & merged[:, None, :]).float()
        total[:, 0::2] += member @ total[:, 1::2]
        source, target = token[:, 1::2], token[:, 0::2].gather(1, nearest)
        joined = place.expand_as(token).scatter(1, source, torch.where(merged, target, source))
        owner = joined.gather(1, owner)

        # what A has left, then B, then all that is no longer in the list
        tier = (place % 2 == 0).long().expand_as(token).masked_fill(place >= counts[:, None], 2)
        tier = torch.where(torch.zeros_like(tier, dtype=torch.bool).index_copy(1, a, merged), 2, tier)
        left = tier.argsort(dim=1, stable=True)
        token = token.gather(1, left)
        total = total.gather(1, left[:, :, None].expand_as(total))
        counts = counts - number
    return owner


def mean_of_clusters(states: Tensor, owner: Tensor, keep: Tensor, valid: Tensor, most: int) -> Tensor:
    """Mean over the tokens of every cluster, at the token that stands for it.

    Args:
        states: Floating ``[problems, n, dim]``.
        owner: The token that stands for each token's cluster, long ``[problems, n]``.
        keep: The tokens that stand for clusters, bool ``[problems, n]``.
        valid: Which entries are tokens, bool ``[problems, n]``.
        most: The most clusters of a problem, known to the host.

    Returns:
        Float32 ``[problems, n, dim]``; what was there where ``keep`` is False.
    """
    states = states.float()
    place = keep.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    member = ((owner[:, None, :] == place[:, :, None]) & valid[:, None, :]).float()
    means = member @ states / member.sum(-1, keepdim=True).clamp(min=1)
    index = place[:, :, None].expand_as(means)
    return states.scatter(1, index, torch.where(keep.gather(1, place)[:, :, None], means, states.gather(1, index)))


def _snapped(similarity: Tensor) -> Tensor:
    return similarity.masked_fill(similarity > _SAME, 1.0)
