"""Maximal marginal relevance: each step takes what is important and unlike all that was taken before."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.greedy import mark_picks

#: Cosines above this value count as 1, so that rounding does not rank exact duplicates.
_DUPLICATE = 1 - 1e-6


def maximal_marginal_relevance(
    similarity: Tensor, importance: Tensor, valid: Tensor, quotas: Tensor, max_quota: int, weight: float
) -> Tensor:
    """Choose tokens of many images at once, each by its importance less its similarity to the chosen ones.

    The first token of an image is the most important one. Each further token is the one with the largest ``weight *
    importance - (1 - weight) * similarity`` to the chosen token that is most similar to it. Ties keep the earlier
    position. Similarities that differ from 1 by at most 1e-6 count as 1. No token is taken twice. No host-device
    synchronisation.

    Source: "The Use of MMR, Diversity-Based Reranking for Reordering Documents and Producing Summaries" (SIGIR 1998).

    Args:
        similarity: Symmetric cosines, floating ``[images, n, n]``.
        importance: Floating ``[images, n]``, comparable to cosines; scaled to 0..1, see
            :func:`tokenprune.ops.dpp.unit_range`.
        valid: Tokens that may be taken, bool ``[images, n]``; at least ``quotas`` of them.
        quotas: Number of tokens to take, long ``[images]``.
        max_quota: Largest quota, as a host integer.
        weight: Weight of the importance, 0 to 1.

    Returns:
        Bool ``[images, n]``.
    """
    similarity = similarity.masked_fill(similarity > _DUPLICATE, 1.0)
    flat, first = similarity.flatten(0, 1), torch.arange(len(similarity), device=similarity.device) * valid.shape[1]
    free = torch.zeros_like(importance).masked_fill_(~valid, -torch.inf)  # -inf for what cannot be taken (any more)
    nearest = torch.full_like(importance, -torch.inf)
    score = importance + free
    picks = []
    for _ in range(max_quota):
        pick = score.argmax(1, keepdim=True)
        picks.append(pick)
        free.scatter_(1, pick, -torch.inf)
        nearest = torch.maximum(nearest, flat.index_select(0, pick[:, 0] + first))
        score = weight * importance - (1 - weight) * nearest + free
    return mark_picks(picks, quotas, valid.shape[1])
