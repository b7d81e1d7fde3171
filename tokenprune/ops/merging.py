"""Merging tokens into other tokens: equal-weight means, or a token plus the mean of those merged into it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokenprune.ops.cosine import cosine_similarity


def average_into(states: Tensor, keys: Tensor, targets: Tensor, merged: Tensor, max_targets: int) -> Tensor:
    """Average every token of ``merged`` into its most similar target.

    A target becomes the mean of itself and of all tokens merged into it, with equal weights. Of equally similar
    targets the earlier one is taken. No host-device synchronisation.

    Args:
        states: States to average, floating ``[images, n, dim]``.
        keys: Keys to compare by cosine similarity, floating ``[images, n, key_dim]``.
        targets: Tokens that others are merged into, bool ``[images, n]``. An image without targets is unchanged.
        merged: Tokens to merge, none of them a target, bool ``[images, n]``.
        max_targets: Largest number of targets of an image, as a host integer.

    Returns:
        Float32 ``[images, n, dim]``: means at the targets, unchanged states elsewhere.
    """
    return _merge(states, keys, targets, merged, max_targets, own_in_mean=True)


def add_mean_into(states: Tensor, keys: Tensor, targets: Tensor, merged: Tensor, max_targets: int) -> Tensor:
    """Add to every target the mean of the tokens of ``merged`` that are most similar to it.

    A target that no token is merged into is unchanged. Otherwise like :func:`average_into`.

    Args:
        states: States to merge, floating ``[images, n, dim]``.
        keys: Keys to compare by cosine similarity, floating ``[images, n, key_dim]``.
        targets: Tokens that others are merged into, bool ``[images, n]``. An image without targets is unchanged.
        merged: Tokens to merge, none of them a target, bool ``[images, n]``.
        max_targets: Largest number of targets of an image, as a host integer.

    Returns:
        Float32 ``[images, n, dim]``: sums of two terms at the targets, unchanged states elsewhere.
    """
    return _merge(states, keys, targets, merged, max_targets, own_in_mean=False)


def _merge(
    states: Tensor, keys: Tensor, targets: Tensor, merged: Tensor, max_targets: int, *, own_in_mean: bool
) -> Tensor:
    """Merge; ``own_in_mean`` tells whether a target is one member of the mean, or the mean is added to it."""
    states = states.float()
    if max_targets == 0:
        return states
    place = targets.int().argsort(dim=1, descending=True, stable=True)[:, :max_targets]  # of the targets, in order
    is_target = targets.gather(1, place)
    similarity = cosine_similarity(keys, _rows_at(keys, place)).masked_fill(~is_target[:, None, :], -torch.inf)
    # A matrix product instead of a scattered sum: on a GPU the order of scattered additions is not deterministic.
    number = torch.arange(max_targets, device=place.device)
    member = (similarity.argmax(-1)[:, None, :] == number[:, None]) & merged[:, None, :] & is_target[:, :, None]
    own, total, count = _rows_at(states, place), member.float() @ states, member.sum(-1, keepdim=True)
    become = (own + total) / (1 + count) if own_in_mean else own + total / count.clamp(min=1)
    return states.scatter(1, place[:, :, None].expand_as(own), torch.where(is_target[:, :, None], become, own))


def replace_at(
    states: Tensor, tokens: Tensor, max_tokens: int, source: Tensor, change: Callable[[Tensor], Tensor]
) -> Tensor:
    """Replace the states of a few tokens by what a function makes of other states of theirs.

    Args:
        states: Floating ``[images, n, dim]``.
        tokens: Tokens to replace, bool ``[images, n]``.
        max_tokens: Largest number of tokens of an image to replace, as a host integer.
        source: Other states of all tokens, floating ``[images, n, width]``.
        change: Maps ``[images, max_tokens, width]`` to ``[images, max_tokens, dim]``, token by token.

    Returns:
        Float32 ``[images, n, dim]``.
    """
    states = states.float()
    if max_tokens == 0:
        return states
    place = tokens.int().argsort(dim=1, descending=True, stable=True)[:, :max_tokens]
    own = _rows_at(states, place)
    rows = torch.where(tokens.gather(1, place)[:, :, None], change(_rows_at(source, place)).to(own), own)
    return states.scatter(1, place[:, :, None].expand_as(own), rows)


def every_nth(tokens: Tensor, counts: Tensor) -> Tensor:
    """Mark ``counts`` tokens of each image, evenly spaced in order, starting with the first.

    The stride is the number of tokens divided by the count, rounded down.

    Args:
        tokens: Tokens to choose from, bool ``[images, n]``.
        counts: Number of tokens to mark, long ``[images]``, at most the number of ``tokens``.

    Returns:
        Bool ``[images, n]``.
    """
    stride = (tokens.sum(1) // counts.clamp(min=1)).clamp(min=1)[:, None]
    rank = tokens.long().cumsum(1) - 1
    return tokens & (rank % stride == 0) & (rank // stride < counts[:, None])


def _rows_at(states: Tensor, place: Tensor) -> Tensor:
    return states.gather(1, place[:, :, None].expand(-1, -1, states.shape[-1]))
