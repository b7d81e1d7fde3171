"""Images cut into crops of successive tokens, and a budget shared between the crops."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Crops:
    """The tokens of many problems, each cut into equally many crops of successive tokens.

    Sizes differ by at most one, the first crops are the larger ones; a problem with fewer tokens than crops has empty
    crops at its end.

    Args:
        sizes: Tokens of each problem, long ``[problems]``.
        longest: The largest of them, known to the host.
        crops: How many crops.
    """

    def __init__(self, sizes: Tensor, longest: int, crops: int) -> None:
        self._longest = longest
        number = torch.arange(crops, device=sizes.device)
        each, rest = sizes[:, None] // crops, sizes[:, None] % crops
        self.sizes: Tensor = each + (number < rest)  #: Tokens of each crop, long ``[problems, crops]``.
        place = torch.arange(math.ceil(longest / crops), device=sizes.device)
        #: Which entries of a crop are tokens, bool ``[problems, crops, length]``.
        self.valid: Tensor = place < self.sizes[:, :, None]
        start = number * each + torch.minimum(number, rest)
        self._index = (start[:, :, None] + place).clamp(max=longest - 1)

    def split(self, states: Tensor) -> Tensor:
        """``[problems, n, ...]`` as ``[problems, crops, length, ...]``; padded entries may hold anything."""
        index = self._index.flatten(1).view(len(states), -1, *[1] * (states.dim() - 2))
        return states.gather(1, index.expand(-1, -1, *states.shape[2:])).view(*self._index.shape, *states.shape[2:])

    def join(self, marked: Tensor) -> Tensor:
        """Bool ``[problems, crops, length]`` back as ``[problems, n]``."""
        index = self._index.masked_fill(~self.valid, self._longest).flatten(1)  # one place more takes the padding
        flat = marked.new_zeros(len(marked), self._longest + 1)
        return flat.scatter(1, index, marked.flatten(1))[:, : self._longest]


def similarity_variance(similarity: Tensor, valid: Tensor) -> Tensor:
    """Variance of each token's similarities to the others of its crop, as HoloV's code takes it.

    The token's similarity to itself enters as 0: mean and variance are sums over all tokens, divided by their number
    less one.

    Args:
        similarity: Floating ``[..., length, length]``.
        valid: Which entries are tokens, bool ``[..., length]``.

    Returns:
        ``[..., length]``; 0 for padding and for a token that is alone.
    """
    both = valid[..., :, None] & valid[..., None, :]
    itself = torch.eye(similarity.shape[-1], dtype=torch.bool, device=valid.device)
    similarity = similarity.masked_fill(~both | itself, 0.0)
    others = (valid.sum(-1, keepdim=True) - 1).clamp(min=1)
    mean = similarity.sum(-1) / others
    spread = (similarity - mean[..., None]).square().masked_fill(~both, 0.0)
    return spread.sum(-1) / others


def share_out(total: Tensor, weights: Tensor, room: Tensor) -> Tensor:
    """Share tokens between crops in proportion to weights, none getting more than it has room for.

    Every share is rounded down and the remainder goes one each to the largest weights (ties: the earlier crop). What
    exceeds a crop's room is shared out in the same way between the crops that still have some. No host-device
    synchronisation.

    Args:
        total: Tokens of each problem, long ``[problems]``, at most the sum of its room.
        weights: Not negative, floating ``[problems, crops]``.
        room: Tokens that each crop has, long ``[problems, crops]``.

    Returns:
        Long ``[problems, crops]``; rows sum to ``total``.
    """
    weights = weights.clamp(min=torch.finfo(weights.dtype).tiny)
    given = torch.zeros_like(room)
    for _ in range(room.shape[1]):  # a round that leaves something over has filled at least one crop
        left = total - given.sum(1)
        some = weights.masked_fill(given >= room, 0.0)
        share = (
            (left[:, None] * some / some.sum(1, keepdim=True).clamp(min=torch.finfo(some.dtype).tiny)).floor().long()
        )
        rank = some.argsort(dim=1, descending=True, stable=True).argsort(1)
        share += rank < (left - share.sum(1))[:, None]
        given = torch.minimum(given + share, room)
    return given
