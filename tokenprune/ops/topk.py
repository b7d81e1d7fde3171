"""Selecting the k best of several groups at once, and splitting a budget between groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def topk_by_group(scores: Tensor, groups: Tensor, quotas: Tensor) -> Tensor:
    """Mark the ``quotas[b, g]`` highest scores of every group of every sample.

    Ties are broken by position: the earlier token wins. No host-device synchronisation.

    Args:
        scores: Floating ``[batch, n]``; NaN is the caller's error.
        groups: Group of each entry, long ``[batch, n]``; negative entries are padding and never marked.
        quotas: How many to mark, long ``[batch, n_groups]``.

    Returns:
        Bool ``[batch, n]``.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    # then by group, the order within each kept: memory does not grow with groups times tokens
    by_group, regrouped = groups.gather(1, order).sort(dim=1, stable=True)
    order = order.gather(1, regrouped)
    first = torch.searchsorted(by_group, by_group)  # where each entry's group starts
    rank = torch.arange(scores.shape[1], device=scores.device) - first
    chosen = (by_group >= 0) & (rank < quotas.gather(1, by_group.clamp(min=0)))
    return torch.zeros_like(chosen).scatter(1, order, chosen)


def apportion(total: int, sizes: Sequence[int]) -> list[int]:
    """Split ``total`` tokens between groups in proportion to their sizes.

    Floor-proportional, the remainder by largest fraction (ties: the earlier group), and at least one each;
    what a small group is lifted by is taken from the largest quota.

    Args:
        total: Tokens to give out, ``len(sizes) <= total <= sum(sizes)``.
        sizes: Tokens that each group has, all positive.

    Returns:
        One quota per group; they sum to ``total`` and none exceeds its size.

    Raises:
        ValueError: The total is outside the range above.
    """
    count = sum(sizes)
    if not len(sizes) <= total <= count:
        raise ValueError(f"cannot split {total} tokens over {len(sizes)} groups that hold {count}")
    quotas = [total * size // count for size in sizes]
    rest = sorted(range(len(sizes)), key=lambda g: (-(total * sizes[g] % count), g))
    for group in rest[: total - sum(quotas)]:
        quotas[group] += 1
    while 0 in quotas:  # only groups far smaller than the others come here
        quotas[max(range(len(quotas)), key=lambda g: (quotas[g], -g))] -= 1
        quotas[quotas.index(0)] += 1
    return quotas
