"""Bipartite matching of tokens that alternate between two sets: drop near-duplicates, or merge them."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tokenprune.ops.cosine import self_similarity
from tokenprune.ops.gather import marked_first, rows_at, with_rows

#: Cosines above this value count as 1, so that rounding does not rank exact duplicates.
_DUPLICATE = 1 - 1e-6


def plan_rounds(
    counts: Iterable[tuple[int, int]], max_removed: Callable[[int, int], int], odd_in_first: bool = False
) -> list[list[tuple[int, int]]]:
    """Plan the rounds that reduce every list to its target length.

    Args:
        counts: Current and target length of each list.
        max_removed: Most entries that one round may remove from a list, as a function of the list's initial and target
            length.
        odd_in_first: Whether the set that loses entries has the extra entry of a list of odd length. If False, the
            other set has it.

    Returns:
        For each round and each list: its length before the round, and how many entries the round removes. A list that
        is short enough waits for the others.
    """
    lists = []
    for length, target in counts:
        limit, steps = max_removed(length, target), []
        while length > target:
            removed = min(limit, length - target, (length + odd_in_first) // 2)
            steps.append((length, removed))
            length -= removed
        lists.append((steps, length))
    rounds = range(max((len(steps) for steps, _ in lists), default=0))
    return [[steps[number] if number < len(steps) else (rest, 0) for steps, rest in lists] for number in rounds]


def rounds_needed(
    counts: Iterable[tuple[int, int]], max_removed: Callable[[int, int], int], odd_in_first: bool = False
) -> int:
    """Number of rounds that reduce every list to its target length: the largest number over all lists.

    The arguments are those of :func:`plan_rounds`.
    """
    return len(plan_rounds(counts, max_removed, odd_in_first))


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
    similarity = _round_duplicates(self_similarity(states))
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


def soft_matching(keys: Tensor, rounds: Sequence[Sequence[tuple[int, int]]]) -> Tensor:
    """Merge tokens into clusters by ToMe's bipartite soft matching, round by round.

    In every round the entries of the list alternate between set B and set A, starting with B: in the towers of the
    paper a class token precedes the list, which would be the first entry of A. Every entry of A has an edge to the
    entry of B with the most similar key (the earliest of several). The edges with the highest similarity merge, as many
    as the round removes entries; of equal edges those of the earlier entries merge first. A merged entry leaves the
    list, and its cluster joins the cluster of the entry of B. The key of a cluster is the mean of its tokens' keys. The
    list of the next round is the rest of A, followed by B, both in order. Cosines above ``1 - 1e-6`` are equal. No
    host-device synchronisation.

    Args:
        keys: Keys to compare by cosine similarity, floating ``[images, n, dim]``.
        rounds: The rounds, from :func:`plan_rounds`: one list per image, the first entries of ``keys``.

    Returns:
        For each token the token that represents its cluster, long ``[images, n]``; padding represents itself.
    """
    images, size = keys.shape[:2]
    image = torch.arange(images, device=keys.device)[:, None]
    place = torch.arange(size, device=keys.device)
    token = place.expand(images, size)  # the token at each place of the list
    # The cosine of a sum equals that of the mean. Sums can be added, so larger clusters weigh more.
    key_sum = keys.to(torch.float32, copy=True)
    in_b = 1 - place % 2
    counts = torch.tensor(rounds, device=keys.device)
    sources, targets = [token[:, :0]], [token[:, :0]]
    for number, plan in enumerate(rounds):
        length, most = (max(values) for values in zip(*plan, strict=True))
        key_sum, token = key_sum[:, :length], token[:, :length]
        outside = place[:length] >= counts[number, :, :1]
        unit = normalize(key_sum, dim=-1)
        bound = torch.where(outside[:, None, 0::2], -2.0, _DUPLICATE)
        best, nearest = (unit[:, 1::2] @ unit[:, 0::2].mT).clamp_(max=bound).max(-1)
        # the strongest edges of each image, as places in the list; as many as its plan says merge
        strongest = best.masked_fill_(outside[:, 1::2], -3.0).argsort(dim=1, descending=True, stable=True)[:, :most]
        source, target = 2 * strongest + 1, nearest.gather(1, strongest)
        merges = place[:most] < counts[number, :, 1:]

        # A matrix product instead of a scattered sum: on a GPU the order of scattered additions is not deterministic.
        member = (target[:, None, :] == place[: bound.shape[2], None]) & merges[:, None, :]
        key_sum[:, 0::2] += member.float() @ key_sum[image, source]
        sources.append(token.gather(1, source).masked_fill_(~merges, size))
        targets.append(token.gather(1, 2 * target))

        # the rest of A, then B, then entries that have left the list
        tier = in_b[:length].masked_fill(outside, 2).scatter_add_(1, source, 2 * merges)
        order = tier.argsort(dim=1, stable=True)
        token, key_sum = token.gather(1, order), key_sum[image, order]
    # the token that each token has merged into, or itself; one extra column takes the edges that do not merge
    joined = torch.arange(size + 1, device=keys.device).repeat(images, 1)
    joined = joined.scatter_(1, torch.cat(sources, dim=1), torch.cat(targets, dim=1))[:, :size]
    # follow the chains of merges, at most one per round; every pass doubles the steps
    for _ in range(len(rounds).bit_length()):
        joined = joined.gather(1, joined)
    return joined


def mean_of_clusters(states: Tensor, representative: Tensor, keep: Tensor, valid: Tensor, max_clusters: int) -> Tensor:
    """Replace the state of each cluster's representative by the mean over the cluster's tokens.

    Args:
        states: Floating ``[images, n, dim]``.
        representative: The token that represents each token's cluster, long ``[images, n]``.
        keep: Representatives, bool ``[images, n]``.
        valid: Entries that are tokens, bool ``[images, n]``.
        max_clusters: Largest number of clusters of an image, as a host integer.

    Returns:
        Float32 ``[images, n, dim]``; states where ``keep`` is False are unchanged.
    """
    states = states.float()
    place, is_kept = marked_first(keep, max_clusters)
    member = ((representative[:, None, :] == place[:, :, None]) & valid[:, None, :]).float()
    means = (member @ states).div_(member.sum(-1, keepdim=True).clamp(min=1))
    return with_rows(states, place, torch.where(is_kept[:, :, None], means, rows_at(states, place)))


def _round_duplicates(similarity: Tensor) -> Tensor:
    return similarity.masked_fill(similarity > _DUPLICATE, 1.0)
