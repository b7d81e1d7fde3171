"""Merging tokens into other tokens: equal-weight means, or a token plus the mean of those merged into it."""

from collections.abc import Callable

import torch
from torch import Tensor

from tokenprune.ops.cosine import cosine_similarity
from tokenprune.ops.gather import marked_first, rows_at, with_rows


def merge_into(
    states: Tensor, keys: Tensor, targets: Tensor, merged: Tensor, max_targets: int, *, own_in_mean: bool
) -> tuple[Tensor, Tensor]:
    """Merge every token of ``merged`` into its most similar target.

    Of equally similar targets the earlier one is taken. A target that no token is merged into is unchanged. No
    host-device synchronisation.

    Args:
        states: States to merge, floating ``[images, n, dim]``.
        keys: Keys to compare by cosine similarity, floating ``[images, n, key_dim]``.
        targets: Tokens that others are merged into, bool ``[images, n]``. An image without targets is unchanged.
        merged: Tokens to merge, none of them a target, bool ``[images, n]``.
        max_targets: Largest number of targets of an image, as a host integer.
        own_in_mean: Whether a target becomes the mean of itself and of all tokens merged into it, with equal weights,
            or itself plus the mean of those merged into it.

    Returns:
        The states, float32 ``[images, n, dim]``: merged ones at the targets, unchanged ones elsewhere. And the target
        that each token was merged into, long ``[images, n]``; -1 for none.
    """
    states = states.float()
    if max_targets == 0:
        return states, torch.full(states.shape[:2], -1, device=states.device)
    place, is_target = marked_first(targets, max_targets)
    similarity = cosine_similarity(keys, rows_at(keys, place)).masked_fill(~is_target[:, None, :], -torch.inf)
    # A matrix product instead of a scattered sum: on a GPU the order of scattered additions is not deterministic.
    number = torch.arange(max_targets, device=place.device)
    nearest = similarity.argmax(-1)
    member = (nearest[:, None, :] == number[:, None]) & merged[:, None, :]
    own, total, count = rows_at(states, place), member.float() @ states, member.sum(-1, keepdim=True)
    become = (own + total) / (1 + count) if own_in_mean else own + total / count.clamp(min=1)
    joined = place.gather(1, nearest).masked_fill(~(merged & is_target.any(1, keepdim=True)), -1)
    return with_rows(states, place, torch.where(is_target[:, :, None], become, own)), joined


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
    place, is_token = marked_first(tokens, max_tokens)
    own = rows_at(states, place)
    return with_rows(states, place, torch.where(is_token[:, :, None], change(rows_at(source, place)).to(own), own))


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
