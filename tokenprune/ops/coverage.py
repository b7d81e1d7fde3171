"""Greedy weighted coverage: each step takes the token that raises the coverage of all tokens most."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import threshold

#: An increase of a token's coverage up to this value is rounding and counts as 0.
NEGLIGIBLE = 1e-6
#: Gains within this fraction of the largest are equal: two tokens that cover only each other have the same gain.
TIE_TOLERANCE = 1e-5


def greedy_coverage(similarity: Tensor, weight: Tensor, valid: Tensor, quotas: Tensor, max_quota: int) -> Tensor:
    """Choose tokens of many images at once so that every token is similar to a chosen one.

    The gain of token i is ``weight_i * sum_j max(0, similarity_ij - best_j)``, where ``best_j`` is the largest
    similarity of j to a token chosen before, at least 0. Of equal gains (up to ``TIE_TOLERANCE``) the earlier position
    is taken. An increase of ``best_j`` up to ``NEGLIGIBLE`` counts as 0. No token is taken twice. No host-device
    synchronisation.

    Args:
        similarity: Symmetric, floating ``[images, n, n]``.
        weight: Not negative, floating ``[images, n]``.
        valid: Entries that are tokens, bool ``[images, n]``.
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
