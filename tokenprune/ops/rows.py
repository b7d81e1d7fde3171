"""Gathering rows of a sequence out of everything that a decoder layer is given. Knows tensors, not models.

``rows`` is always long ``[batch, kept]``: indices into the unpruned sequence, -1 for padding.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

Nested = TypeVar("Nested")


def take(states: Tensor, rows: Tensor, axis: int, batch_axis: int) -> Tensor:
    """Gather ``rows`` along one axis, per sample.

    Args:
        states: Any tensor; its batch axis has the size of the batch, or 1 (shared by all samples).
        rows: Long ``[batch, kept]``; -1 gathers row 0 (padding: the caller masks it).
        axis: Sequence axis, negative or not.
        batch_axis: Batch axis.

    Returns:
        ``states`` with ``kept`` entries on ``axis`` and a full batch axis.
    """
    shape = [1] * states.dim()
    shape[axis], shape[batch_axis] = rows.shape[1], rows.shape[0]
    return torch.take_along_dim(states, rows.clamp(min=0).to(states.device).view(shape), dim=axis)


def take_nested(states: Nested, rows: Tensor) -> Nested:
    """Gather position embeddings: tensors ``[..., batch, seq, dim]``, or tuples and dicts of them."""
    if isinstance(states, Tensor):
        return take(states, rows, -2, -3)  # type: ignore[return-value]
    if isinstance(states, dict):
        return type(states)((key, take_nested(item, rows)) for key, item in states.items())
    if isinstance(states, list | tuple):
        return type(states)(take_nested(item, rows) for item in states)
    return states


def keep_index(keep: Tensor, width: int) -> Tensor:
    """Rows to keep as indices, right-aligned: shorter samples get padding on the left.

    Args:
        keep: Bool ``[batch, rows]``.
        width: The largest number of kept rows of a sample.

    Returns:
        Long ``[batch, width]``, ascending, -1 for padding.
    """
    order = keep.int().argsort(dim=1, stable=True)[:, keep.shape[1] - width :]
    return order.masked_fill(~keep.gather(1, order), -1)


def compose(rows: Tensor, index: Tensor) -> Tensor:
    """``rows`` of the original sequence, after a further selection ``index`` among them."""
    return rows.gather(1, index.clamp(min=0)).masked_fill(index < 0, -1)


def hidden_value(mask: Tensor) -> bool | float:
    """What marks a hidden entry in a mask of this dtype."""
    return False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min


def prefill_mask(mask: Tensor, rows: Tensor) -> Tensor:
    """Compact a prefill's mask on its query and key axes.

    Args:
        mask: ``[batch or 1, heads or 1, seq, seq]``, bool (True = visible) or additive.
        rows: Long ``[batch, kept]``, -1 for padding.

    Returns:
        ``[batch, heads or 1, kept, kept]``. Padding columns are hidden; padding rows see only themselves, so that
        nothing of them is NaN.
    """
    compact = take(take(mask, rows, 2, 0), rows, 3, 0)
    padding = rows < 0
    compact = compact.masked_fill(padding[:, None, None, :], hidden_value(mask))
    return see_self(compact, padding)


def see_self(mask: Tensor, padding: Tensor) -> Tensor:
    """Let padding rows see their own column. ``mask`` is ``[batch, heads, rows, rows]``."""
    own = torch.eye(padding.shape[1], dtype=torch.bool, device=padding.device) & padding[:, None, :, None]
    return mask.masked_fill(own, True if mask.dtype == torch.bool else 0.0)


def causal_mask(rows: Tensor, causal: bool) -> Tensor:
    """The bool mask ``[batch, 1, kept, kept]`` of compacted rows where the model itself needed none."""
    kept = rows.shape[1]
    padding = rows < 0
    seen = torch.ones(kept, kept, dtype=torch.bool, device=rows.device)
    mask = (seen.tril() if causal else seen) & ~padding[:, None, None, :]
    return see_self(mask, padding)


def decode_mask(mask: Tensor | None, columns: Tensor, total: int, new: int) -> Tensor:
    """The mask of a decode step whose keys are ``columns``.

    Args:
        mask: What the model made for the unpruned cache: ``[batch or 1, heads or 1, new, width]``, the 2-D
            ``[batch, width]`` of flash attention, or None (everything is visible). A sliding window's mask covers
            the last ``width`` positions only.
        columns: Unpruned position of every key, long ``[batch, keys]``, -1 for padding.
        total: Unpruned length including the new tokens.
        new: Number of new tokens.

    Returns:
        A mask of the same form whose last axis is ``keys``; bool ``[batch, 1, new, keys]`` for None.
    """
    if mask is None:
        return (columns >= 0)[:, None, None, :].expand(-1, 1, new, -1)
    local = columns - (total - mask.shape[-1])
    taken = take(mask, local, -1, 0)
    absent = (columns < 0) | (local < 0)
    return taken.masked_fill(absent if mask.dim() == 2 else absent[:, None, None, :], hidden_value(mask))
