"""Gather the kept rows of a sequence from the arguments of a decoder layer: states, position embeddings, masks.

``rows`` is always long ``[batch, kept]``: indices into the unpruned sequence, -1 for padding.
"""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

Nested = TypeVar("Nested")


def take(states: Tensor, rows: Tensor, axis: int, batch_axis: int) -> Tensor:
    """Gather ``rows`` along one axis, sample by sample.

    Args:
        states: Any tensor; its batch axis has the size of the batch, or 1 where all samples share it.
        rows: Long ``[batch, kept]``; -1 (padding) gathers row 0, which the caller masks.
        axis: Sequence axis; may be negative.
        batch_axis: Batch axis; may be negative.

    Returns:
        ``states`` with ``kept`` entries on ``axis`` and the size of the batch on ``batch_axis``.
    """
    shape = [1] * states.dim()
    shape[axis], shape[batch_axis] = rows.shape[1], rows.shape[0]
    return torch.take_along_dim(states, rows.clamp(min=0).to(states.device).view(shape), dim=axis)


def take_nested(states: Nested, rows: Tensor) -> Nested:
    """Gather position embeddings: a tensor ``[..., batch, seq, dim]``, or nested tuples, lists and dicts of them."""
    if isinstance(states, Tensor):
        return take(states, rows, -2, -3)  # type: ignore[return-value]
    if isinstance(states, dict):
        return type(states)((key, take_nested(item, rows)) for key, item in states.items())
    if isinstance(states, list | tuple):
        return type(states)(take_nested(item, rows) for item in states)
    return states


def keep_index(keep: Tensor, width: int) -> Tensor:
    """Indices of the rows to keep, right-aligned: samples with fewer rows have padding on the left.

    Args:
        keep: Bool ``[batch, rows]``.
        width: Largest number of kept rows of a sample, as a host integer.

    Returns:
        Long ``[batch, width]``, ascending, -1 for padding.
    """
    order = keep.int().argsort(dim=1, stable=True)[:, keep.shape[1] - width :]
    return order.masked_fill(~keep.gather(1, order), -1)


def compose(rows: Tensor, index: Tensor) -> Tensor:
    """Apply a further selection to ``rows``.

    Args:
        rows: Long ``[batch, kept]``, -1 for padding.
        index: Those to keep, long ``[batch, fewer]``: indices into ``rows``, -1 for padding.

    Returns:
        Rows of the unpruned sequence, long ``[batch, fewer]``, -1 for padding.
    """
    return rows.gather(1, index.clamp(min=0)).masked_fill(index < 0, -1)


def place_of(wanted: Tensor, rows: Tensor) -> Tensor:
    """The index among some rows of those that were kept of them; undoes :func:`compose`.

    Args:
        wanted: Long ``[batch, fewer]``: all are among ``rows``; -1 for padding.
        rows: Long ``[batch, kept]``, ascending, -1 for padding.

    Returns:
        Long ``[batch, fewer]``, -1 for padding.
    """
    return torch.searchsorted(rows.contiguous(), wanted.contiguous()).masked_fill(wanted < 0, -1)


def hidden_value(mask: Tensor) -> bool | float:
    """The value of a masked entry: False in a bool mask, the dtype's minimum in an additive mask."""
    return False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min


def prefill_mask(mask: Tensor, rows: Tensor, earlier: int = 0) -> Tensor:
    """Gather the kept rows on the query axis and the key axis of a prefill mask.

    Args:
        mask: ``[batch or 1, heads or 1, seq, earlier + seq]``, bool (True = visible) or additive.
        rows: Long ``[batch, kept]``, -1 for padding.
        earlier: Keys of earlier turns, which come first.

    Returns:
        ``[batch, heads or 1, kept, earlier + kept]``. Padding columns are masked. A padding row attends to itself
        only: a fully masked row would give NaN.
    """
    columns = behind_earlier(rows, earlier)
    compact = take(take(mask, rows, 2, 0), columns, 3, 0)
    compact = compact.masked_fill((columns < 0)[:, None, None, :], hidden_value(mask))
    return see_self(compact, rows < 0)


def behind_earlier(rows: Tensor, earlier: int) -> Tensor:
    """The columns of all keys of earlier turns, and of the rows of this one that are left.

    Args:
        rows: Long ``[batch, kept]``, -1 for padding.
        earlier: Keys of earlier turns, which come first.

    Returns:
        Long ``[batch, earlier + kept]``, -1 for padding.
    """
    if not earlier:
        return rows
    first = torch.arange(earlier, device=rows.device).expand(rows.shape[0], -1)
    return torch.cat([first, (rows + earlier).masked_fill(rows < 0, -1)], dim=1)


def with_free_columns(mask: Tensor, free: int) -> Tensor:
    """A mask with hidden columns behind its own: keys of a static cache that wait for later tokens.

    Args:
        mask: ``[batch, heads, rows, keys]``, bool (True = visible) or additive.
        free: Columns to add.
    """
    return torch.nn.functional.pad(mask, (0, free), value=hidden_value(mask)) if free else mask


def is_visible(mask: Tensor) -> Tensor:
    """The entries of a mask that are visible, bool of the same shape."""
    return mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() else mask.bool()


def full_mask(mask: object) -> Tensor | None:
    """The mask of full attention among the masks of a call.

    Args:
        mask: The attention mask of a call: ``[batch, keys]``, ``[batch or 1, heads or 1, rows, keys]``, or a mapping of
            such masks, of which that of full attention counts.

    Returns:
        The mask; None where there is none of a known form.
    """
    if isinstance(mask, Mapping):
        mask = mask.get("full_attention")
    return mask if isinstance(mask, Tensor) and mask.dim() in (2, 4) else None


def seen_columns(mask: object) -> Tensor | None:
    """The columns that no mask of a call hides as padding: those that its last row sees.

    Args:
        mask: As for :func:`full_mask`; anything else tells nothing.

    Returns:
        Bool ``[batch or 1, keys]``; None where nothing is told.
    """
    full = full_mask(mask)
    if full is None:
        return None
    return full.bool() if full.dim() == 2 else is_visible(full[:, 0, -1])


def see_self(mask: Tensor, padding: Tensor) -> Tensor:
    """Let padding rows attend to themselves.

    Args:
        mask: ``[batch, heads, rows, keys]``, bool (True = visible) or additive; the last keys are those of the rows.
        padding: Rows that are padding, bool ``[batch, rows]``.

    Returns:
        The mask with the entries of padding rows at their own keys visible.
    """
    rows, keys = mask.shape[2:]
    own_column = torch.ones(rows, keys, dtype=torch.bool, device=padding.device).tril(keys - rows).triu(keys - rows)
    own_column = own_column & padding[:, None, :, None]
    return mask.masked_fill(own_column, True if mask.dtype == torch.bool else 0.0)


def causal_mask(rows: Tensor, causal: bool) -> Tensor:
    """The mask of the kept rows for a layer that the model gave no mask.

    Args:
        rows: Long ``[batch, kept]``, -1 for padding.
        causal: Whether attention is causal.

    Returns:
        Bool ``[batch, 1, kept, kept]``, True = visible.
    """
    kept = rows.shape[1]
    padding = rows < 0
    visible = torch.ones(kept, kept, dtype=torch.bool, device=rows.device)
    mask = (visible.tril() if causal else visible) & ~padding[:, None, None, :]
    return see_self(mask, padding)


def decode_mask(mask: Tensor | None, columns: Tensor, total: int, new: int) -> Tensor:
    """The mask of a decode step whose keys are ``columns``.

    Args:
        mask: The model's mask for the unpruned cache: ``[batch or 1, heads or 1, new, width]``, the 2-D
            ``[batch, width]`` of flash attention, or None (everything is visible). The mask of a sliding window
            covers only the last ``width`` positions.
        columns: Unpruned position of every key, long ``[batch, keys]``, -1 for padding.
        total: Unpruned length, new tokens included.
        new: Number of new tokens.

    Returns:
        A mask of the same form whose last axis is ``keys``; bool ``[batch, 1, new, keys]`` for None.
    """
    if mask is None:
        return (columns >= 0)[:, None, None, :].expand(-1, 1, new, -1)
    mask_columns = columns - (total - mask.shape[-1])
    gathered = take(mask, mask_columns, -1, 0)
    absent = (columns < 0) | (mask_columns < 0)
    return gathered.masked_fill(absent if mask.dim() == 2 else absent[:, None, None, :], hidden_value(mask))
