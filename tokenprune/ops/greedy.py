"""Greedy choices of tokens, step by step, in many images at once that have quotas of their own."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import threshold

#: Distances, and increases of a token's coverage, up to this value are rounding and count as 0.
NEGLIGIBLE = 1e-6
#: Gains within this fraction of the largest are equal: two tokens that cover only each other have the same gain.
TIE_TOLERANCE = 1e-5


def max_min(
    distance: Tensor, candidates: Tensor, quotas: Tensor, max_quota: int, weights: Tensor | None = None
) -> Tensor:
    """Choose tokens so that the smallest distance between two chosen tokens is large.

    The first token is the candidate whose nearest other candidate is farthest. Each further token is the one whose
    nearest chosen token is farthest. Ties keep the earlier position. Distances up to ``NEGLIGIBLE`` count as 0. No
    token is taken twice. With weights, the distances of a token that is to be taken are multiplied by its weight. No
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
    distance = threshold(distance, NEGLIGIBLE, 0.0)
    if weights is not None:
        distance = distance * weights[:, None, :]
    # a token's distance to itself and to what is no candidate is never the smallest
    distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
    distance.masked_fill_(~(candidates[:, None, :] & candidates[:, :, None]), torch.inf)
    # distance to the nearest chosen token: infinite before the first choice; -inf for what cannot be taken (any more)
    row_at = row_reader(distance)
    nearest = distance.new_full(candidates.shape, torch.inf).masked_fill_(~candidates, -torch.inf)
    score = torch.minimum(nearest, distance.amin(1))  # a column is a token to be taken
    picks = []
    for _ in range(max_quota):
        pick = score.argmax(1, keepdim=True)
        picks.append(pick)
        score = nearest = torch.minimum(nearest.scatter_(1, pick, -torch.inf), row_at(pick))
    return mark_picks(picks, quotas, candidates.shape[1])


def maximal_marginal_relevance(
    similarity: Tensor, importance: Tensor, valid: Tensor, quotas: Tensor, max_quota: int, weight: float
) -> Tensor:
    """Choose tokens, each by its importance less its similarity to the chosen ones.

    The first token of an image is the most important one. Each further token is the one with the largest ``weight *
    importance - (1 - weight) * similarity`` to the chosen token that is most similar to it. Ties keep the earlier
    position. Similarities that differ from 1 by at most ``NEGLIGIBLE`` count as 1. No token is taken twice. No
    host-device synchronisation.

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
    similarity = similarity.masked_fill(similarity > 1 - NEGLIGIBLE, 1.0)
    row_at = row_reader(similarity)
    free = torch.zeros_like(importance).masked_fill_(~valid, -torch.inf)  # -inf for what cannot be taken (any more)
    nearest = torch.full_like(importance, -torch.inf)
    score = importance + free
    picks = []
    for _ in range(max_quota):
        pick = score.argmax(1, keepdim=True)
        picks.append(pick)
        free.scatter_(1, pick, -torch.inf)
        nearest = torch.maximum(nearest, row_at(pick))
        score = weight * importance - (1 - weight) * nearest + free
    return mark_picks(picks, quotas, valid.shape[1])


def greedy_coverage(similarity: Tensor, weight: Tensor, valid: Tensor, quotas: Tensor, max_quota: int) -> Tensor:
    """Choose tokens so that every token is similar to a chosen one.

    The gain of token i is ``weight_i * sum_j max(0, similarity_ij - best_j)``, where ``best_j`` is the largest
    similarity of j to a token chosen before, at least 0. Of equal gains (up to ``TIE_TOLERANCE``) the earlier position
    is taken. An increase of ``best_j`` up to ``NEGLIGIBLE`` counts as 0. No token is taken twice. No host-device
    synchronisation.

    Args:
        similarity: Symmetric, floating ``[images, n, n]``.
        weight: Not negative, floating ``[images, n]``.
        valid: Tokens that may be taken, bool ``[images, n]``.
        quotas: Number of tokens to take, long ``[images]``.
        max_quota: Largest quota, as a host integer.

    Returns:
        Bool ``[images, n]``.
    """
    similarity = similarity.masked_fill(~valid[:, :, None], 0.0)  # padding needs no coverage
    best = similarity.new_zeros(valid.shape)
    image = torch.arange(len(valid), device=valid.device)
    chosen = torch.zeros_like(valid)
    for step in range(max_quota):
        gain = threshold(similarity - best[:, :, None], NEGLIGIBLE, 0.0).sum(1) * weight
        gain = gain.masked_fill(chosen | ~valid, -1.0)
        pick = (gain >= gain.amax(1, keepdim=True) * (1 - TIE_TOLERANCE)).int().argmax(1)
        chosen[image, pick] |= step < quotas
        best = torch.maximum(best, similarity[image, :, pick])
    return chosen


def row_reader(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that reads a row of each matrix of ``[images, n, n]``: long ``[images, 1]`` to ``[images, n]``."""
    flat, first = matrix.flatten(0, 1), torch.arange(len(matrix), device=matrix.device) * matrix.shape[1]
    return lambda pick: flat.index_select(0, pick[:, 0] + first)


def mark_picks(picks: Sequence[Tensor], quotas: Tensor, size: int) -> Tensor:
    """Mark the first ``quotas`` picks of each image. No host-device synchronisation.

    Args:
        picks: The token that each step picked, long ``[images, 1]`` per step. Picks after the quota may repeat.
        quotas: Number of picks that count, long ``[images]``.
        size: Number of tokens per image.

    Returns:
        Bool ``[images, size]``.
    """
    chosen = torch.zeros(len(quotas), size + 1, dtype=torch.bool, device=quotas.device)
    if picks:
        order = torch.cat(list(picks), dim=1)
        step = torch.arange(len(picks), device=order.device)
        # one extra column takes the picks after the quota
        chosen.scatter_(1, order.masked_fill(step >= quotas[:, None], size), True)
    return chosen[:, :size]
