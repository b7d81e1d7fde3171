"""The k best tokens of several groups (images) at once, and counts that are shares of others."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def topk_by_group(scores: Tensor, groups: Tensor, quotas: Tensor) -> Tensor:
    """Mark the ``quotas[b, g]`` highest scores of every group of every sample.

    Ties keep the earlier position. No host-device synchronisation.

    Args:
        scores: Floating ``[batch, n]``; callers must exclude NaN.
        groups: Group of each entry, long ``[batch, n]``; negative for padding, which is never marked.
        quotas: Number of entries to mark, long ``[batch, n_groups]``.

    Returns:
        Bool ``[batch, n]``.
    """
    return (groups >= 0) & (rank_within(scores, groups) < quotas.gather(1, groups.clamp(min=0)))


def rank_within(scores: Tensor, groups: Tensor) -> Tensor:
    """Rank of each entry within its group, 0 for the highest score; ties: the earlier position goes first.

    No host-device synchronisation.

    Args:
        scores: Floating ``[batch, n]``; callers must exclude NaN.
        groups: Group of each entry, long ``[batch, n]``; any number, also a negative one, is a group.

    Returns:
        Long ``[batch, n]``.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    # a stable sort by group keeps the order of scores, and needs no [groups, entries] matrix
    by_group, regrouped = groups.gather(1, order).sort(dim=1, stable=True)
    rank = torch.arange(scores.shape[1], device=scores.device) - torch.searchsorted(by_group, by_group)
    return torch.zeros_like(groups).scatter(1, order.gather(1, regrouped), rank)


def best_by_tier(tiers: Tensor, scores: Tensor, quotas: Tensor) -> Tensor:
    """Mark the ``quotas`` best tokens of each image: highest tier first, then highest score, then earliest position.

    Args:
        tiers: Long ``[images, n]``.
        scores: Floating ``[images, n]``.
        quotas: Number of tokens to mark, long ``[images]``.

    Returns:
        Bool ``[images, n]``.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, tiers.gather(1, order).argsort(dim=1, descending=True, stable=True))
    selected = torch.arange(tiers.shape[1], device=tiers.device) < quotas[:, None]
    return torch.zeros_like(selected).scatter(1, order, selected)


def floor_share(count: int, share: float) -> int:
    """A share of a count, rounded down. Errors of floating point do not count: 0.29 of 100 are 29, not 28."""
    return math.floor(count * share + 1e-9)


def apportion(total: int, sizes: Sequence[int]) -> list[int]:
    """Divide ``total`` tokens between groups in proportion to their sizes.

    Quotas are rounded down; the remainder goes to the largest fractions (ties: the earlier group). A group whose quota
    would be 0 gets one token from the group with the largest quota.

    Args:
        total: Tokens to divide, ``len(sizes) <= total <= sum(sizes)``.
        sizes: Tokens of each group, all positive.

    Returns:
        One quota per group; they sum to ``total`` and none exceeds its size.

    Raises:
        ValueError: ``total`` is outside the range above.
    """
    count = sum(sizes)
    if not len(sizes) <= total <= count:
        raise ValueError(f"cannot divide {total} tokens between {len(sizes)} groups of {count} tokens in total")
    quotas = [total * size // count for size in sizes]
    by_fraction = sorted(range(len(sizes)), key=lambda g: (-(total * sizes[g] % count), g))
    for group in by_fraction[: total - sum(quotas)]:
        quotas[group] += 1
    while 0 in quotas:  # happens only when a group is far smaller than the others
        quotas[max(range(len(quotas)), key=lambda g: (quotas[g], -g))] -= 1
        quotas[quotas.index(0)] += 1
    return quotas
