"""Greedy weighted coverage: each token taken is the one that adds most to how well the kept ones cover all."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import threshold

#: What a token adds to the coverage of another up to here is rounding.
NOTHING = 1e-6
#: Gains that differ by this share of the largest are equal: two tokens that would cover only each other gain the same.
SAME = 1e-5


def greedy_coverage(similarity: Tensor, weight: Tensor, valid: Tensor, quotas: Tensor, steps: int) -> Tensor:
    """Choose tokens of many problems at once so that every token has a similar one among the chosen.

    The gain of token i is ``weight_i * sum_j max(0, similarity_ij - best_j)``, where ``best_j`` is the largest
    similarity of j to a token chosen before, at least 0. Ties (up to ``SAME``) keep the earlier position; what is added
    to a token up to ``NOTHING`` counts as 0. No token is taken twice, and no host-device synchronisation happens.

    Args:
        similarity: Symmetric, floating ``[problems, n, n]``.
        weight: Not negative, floating ``[problems, n]``.
        valid: Which entries are tokens, bool ``[problems, n]``.
        quotas: How many to take, long ``[problems]``.
        steps: The largest quota, known to the host.

    Returns:
        Bool ``[problems, n]``.
    """
    similarity = similarity.masked_fill(~valid[:, :, None], 0.0)  # padding wants no cover
    best = similarity.new_zeros(valid.shape)
    problem = torch.arange(len(valid), device=valid.device)
    chosen = torch.zeros_like(valid)
    for step in range(steps):
        gain = threshold(similarity - best[:, :, None], NOTHING, 0.0).sum(1) * weight
        gain = gain.masked_fill(chosen | ~valid, -1.0)
        pick = (gain >= gain.amax(1, keepdim=True) * (1 - SAME)).int().argmax(1)
        chosen[problem, pick] |= step < quotas
        best = torch.maximum(best, similarity[problem, :, pick])
    return chosen
