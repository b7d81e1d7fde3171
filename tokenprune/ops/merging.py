"""Merging tokens into others by average."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.ops.cosine import cosine_similarity


def merge_into(states: Tensor, keys: Tensor, targets: Tensor, others: Tensor, most: int) -> Tensor:
    """Average every token of ``others`` into the target that it is most like.

    A target becomes the mean of itself and of all tokens merged into it, all with equal weight. Equally like targets:
    the earlier one. No host-device synchronisation.

    Args:
        states: What is averaged, floating ``[problems, n, dim]``.
        keys: What is compared, by cosine, floating ``[problems, n, key_dim]``.
        targets: Tokens that others are merged into, bool ``[problems, n]``.
        others: Tokens that are merged, none of them a target, bool ``[problems, n]``; in a problem without targets
            nothing happens.
        most: The most targets of a problem, known to the host.

    Returns:
        Float32 ``[problems, n, dim]``: the means at the targets, elsewhere what was there.
    """
    states = states.float()
    if most == 0:
        return states
    place = targets.int().argsort(dim=1, descending=True, stable=True)[:, :most]  # of the targets, in order
    real = targets.gather(1, place)
    likeness = cosine_similarity(keys, _at(keys, place)).masked_fill(~real[:, None, :], -torch.inf)
    # a product and not a scattered sum: on a GPU the order of scattered additions, and so the last bit, is chance
    number = torch.arange(most, device=place.device)
    member = (likeness.argmax(-1)[:, None, :] == number[:, None]) & others[:, None, :] & real[:, :, None]
    own = _at(states, place)
    means = (own + member.float() @ states) / (1 + member.sum(-1, keepdim=True))
    return states.scatter(1, place[:, :, None].expand_as(own), torch.where(real[:, :, None], means, own))


def every_nth(tokens: Tensor, counts: Tensor) -> Tensor:
    """Mark so many of each problem's tokens, evenly spaced in order, beginning with the first.

    The stride is the number of tokens divided by the count, rounded down.

    Args:
        tokens: The tokens to choose from, bool ``[problems, n]``.
        counts: How many to mark, long ``[problems]``, at most the tokens there are.

    Returns:
        Bool ``[problems, n]``.
    """
    stride = (tokens.sum(1) // counts.clamp(min=1)).clamp(min=1)[:, None]
    rank = tokens.long().cumsum(1) - 1
    return tokens & (rank % stride == 0) & (rank // stride < counts[:, None])


def _at(states: Tensor, place: Tensor) -> Tensor:
    return states.gather(1, place[:, :, None].expand(-1, -1, states.shape[-1]))
