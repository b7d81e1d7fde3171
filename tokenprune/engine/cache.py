"""KV-cache layers that know which positions they hold.

After a pruned prefill the cache of a pruned layer is shorter than the sequence. Models size their masks and count
their positions by asking cache layers for their length, so a pruned layer answers with the *unpruned* length: then
every mask that arrives at a layer covers the whole sequence, whichever layer it was sized by, and a decode step without
explicit ``position_ids`` goes on at the right position. The rows travel with the cache through beam search
(``reorder_cache``) and copies.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from tokenprune.core.call_arguments import CACHE_NAMES
from tokenprune.errors import UnsupportedFeatureError
from tokenprune.ops.rows import decode_mask, hidden_value, take


class RunningCalls(Protocol):
    """The calls of a thread, as a cache sees them."""

    calls: Any  # empty where no call of the model is running


class CacheOwner:
    """The ``apply`` block that pruned a cache. Copies of the cache share it.

    Args:
        thread: Holds the calls of the model that run on this thread and that the block follows.
    """

    def __init__(self, thread: RunningCalls | None) -> None:
        self.thread = thread

    def end(self) -> None:
        """End the block: its caches cannot be used from now on."""
        self.thread = None

    def check(self) -> None:
        """Refuse to extend a cache where nobody cuts the masks to its keys.

        Raises:
            UnsupportedFeatureError: The block has ended, or the model was called in a way that the block does not
                follow: by its layers, or with the cache where nobody sees it.
        """
        if self.thread is None:
            raise UnsupportedFeatureError(
                "this KV cache was pruned inside an apply block that has ended",
                "finish the generation inside the block, or prefill again without a cache",
            )
        if not self.thread.calls:
            raise UnsupportedFeatureError(
                "a pruned KV cache was used outside a call of the model that apply was given",
                "call the model itself, not its layers",
            )
        if not self.thread.calls[-1].continues_pruned:
            raise UnsupportedFeatureError(
                "the model goes on with a pruned KV cache that was not among the arguments of its call: nobody cuts the"
                " masks to its keys",
                f"pass the cache itself, as {' or '.join(CACHE_NAMES)}",
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> CacheOwner:
        return self

    def __reduce__(self) -> Any:
        return _ended, ()


def _ended() -> CacheOwner:
    """The owner of a pickled cache: its block is not there any more."""
    return CacheOwner(None)


@dataclass(frozen=True)
class Rows:
    """The rows of the prompt that a pruned layer's cache holds.

    Attributes:
        positions: Unpruned position of each cached prompt row, long ``[batch, kept]``, -1 for padding.
        length: Unpruned length of the prompt.
        ragged: Whether any row is padding (known on the host).
        owner: The block that pruned it.
        following: Position of the first token after the prompt where positions are renumbered, long ``[batch]``; -1 for
            samples that keep their positions, None where all do.
    """

    positions: Tensor
    length: int
    ragged: bool
    owner: CacheOwner
    following: Tensor | None = None

    @property
    def dropped(self) -> int:
        """Rows by which the cache is shorter than the sequence."""
        return self.length - self.positions.shape[1]

    @cached_property
    def padding(self) -> Tensor:
        """Rows that are padding, bool ``[batch, kept]``."""
        return self.positions < 0

    def of_samples(self, change: Callable[[Tensor], Tensor]) -> Rows:
        """The rows of other samples; ``change`` picks or repeats along the batch axis."""
        following = None if self.following is None else change(self.following)
        return replace(self, positions=change(self.positions), following=following)

    def cut(self, mask: Tensor) -> Tensor:
        """The columns of the kept rows and of all that followed the prompt, of a mask that covers the whole sequence.

        Args:
            mask: ``[batch or 1, heads or 1, new, length + ...]``, or ``[batch, length + ...]`` for flash attention.

        Returns:
            The mask over the keys that the cache holds.
        """
        prompt = take(mask[..., : self.length], self.positions, -1, 0)
        if self.ragged:
            absent = self.padding if mask.dim() == 2 else self.padding[:, None, None, :]
            prompt = prompt.masked_fill(absent, hidden_value(mask))
        rest = mask[..., self.length :]
        return torch.cat([prompt, rest.expand(*prompt.shape[:-1], -1)], dim=-1)


class PrunedCacheLayer(ABC):
    """Mixin for cache layers that hold fewer rows than the sequence; :func:`mark` adds it to a plain layer.

    Like the cache layers of transformers it is an ``ABC`` without slots: Python swaps the class of an object only for
    one of the same layout.
    """

    plain: type
    rows: Rows
    hidden_length: int  # rows that the plain layer does not count
    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add keys and values, inside the block that pruned the cache."""
        thread = self.rows.owner.thread
        # asked here first: this runs in every layer of every step
        if thread is None or not thread.calls or not thread.calls[-1].continues_pruned:
            self.rows.owner.check()
        plain: Any = self.plain
        states: tuple[Tensor, Tensor] = plain.update(self, key_states, value_states, *args, **kwargs)
        return states

    def get_seq_length(self) -> int:
        """Length of the sequence that the cache stands for, dropped rows included."""
        length = int(super().get_seq_length())  # type: ignore[misc]
        return length + self.hidden_length if length else 0

    def step_mask(self, mask: Tensor | None, new: int, two_dimensional: bool) -> Tensor:
        """The mask of a step that adds ``new`` tokens, over the keys that this layer holds.

        Args:
            mask: The mask that the model made for the unpruned cache; None where everything is visible.
            new: Tokens of the step.
            two_dimensional: Whether flash attention reads it: ``[batch, keys]`` where the model made none.
        """
        total = self.get_seq_length() + new
        width = self.keys.shape[-2] + new
        if mask is not None and mask.shape[-1] == total and width == total - self.rows.dropped:
            return self.rows.cut(mask)
        made = decode_mask(mask, self._columns(new), total, new)  # no mask, or a sliding window's
        return made[:, 0, -1] if mask is None and two_dimensional else made

    def unpruned_bytes(self) -> int:
        """Bytes that the layer would hold, had nothing been dropped."""
        window = getattr(self, "sliding_window", None)
        full = self.rows.length if window is None else min(self.rows.length, window - 1)
        width = max(self.keys.shape[-2], 1)
        return full * sum(states.element_size() * states.numel() // width for states in (self.keys, self.values))

    def _columns(self, new: int) -> Tensor:
        """Unpruned positions of all keys of a step that adds ``new`` tokens, long ``[batch, keys]``."""
        positions = self.rows.positions
        fresh = torch.arange(self.rows.length, self.get_seq_length() + new, device=positions.device)
        every = torch.cat([positions, fresh.expand(positions.shape[0], -1)], dim=1)
        return every[:, every.shape[1] - self.keys.shape[-2] - new :]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Pick samples, as beam search does."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._pick(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Pick samples."""
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._pick(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample."""
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self.rows = self.rows.of_samples(lambda values: values.repeat_interleave(repeats, dim=0))

    def crop(self, *args: Any, **kwargs: Any) -> None:
        """Refuse a crop, which would roll the cache back past dropped rows."""
        raise UnsupportedFeatureError(
            "a pruned KV cache cannot be cropped (assisted decoding?)", "use greedy, sampling or beam search"
        )

    def reset(self) -> None:
        """Empty the layer; an empty layer is an ordinary one again."""
        self.__class__ = self.plain
        del self.rows, self.hidden_length
        self.reset()

    def _pick(self, index: Tensor) -> None:
        self.rows = self.rows.of_samples(lambda values: values[index.to(values.device)])


class PrunedDynamicLayer(PrunedCacheLayer, DynamicLayer):  # type: ignore[misc]
    """A pruned layer with full attention."""

    plain = DynamicLayer


class PrunedSlidingWindowLayer(PrunedCacheLayer, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """A pruned layer with a sliding window."""

    plain = DynamicSlidingWindowLayer


_CACHE_FIX = "use the default DynamicCache"

#: The cache layers that the engine can compact exactly, and what they become.
PRUNED_CLASSES: dict[type, type] = {layer.plain: layer for layer in (PrunedDynamicLayer, PrunedSlidingWindowLayer)}


def mark(cache: Cache, layer: int, rows: Rows) -> None:
    """Tell the cache of a layer which rows of the prompt it holds.

    Raises:
        UnsupportedFeatureError: The layer cannot be compacted exactly. :func:`check_cache` sees only layers that exist
            before the model runs; a cache, or a model that makes its own, may add others.
    """
    cache_layer: Any = cache.layers[layer]
    _check_layer(cache_layer)
    cache_layer.hidden_length = rows.dropped
    if hasattr(cache_layer, "cumulative_length"):  # a sliding window counts by itself
        cache_layer.cumulative_length += rows.dropped
        cache_layer.hidden_length = 0
    cache_layer.__class__ = PRUNED_CLASSES[type(cache_layer)]
    cache_layer.rows = rows


def cut(cache: Cache, layer: int, rows: Rows, seen: Tensor | None) -> None:
    """Cut the cache of a layer before a stage to the rows that the stage kept, after the prefill.

    A layer with a sliding window holds only the last rows that it saw. What a sample kept before these is padding.

    Args:
        cache: The KV cache.
        layer: The layer.
        rows: The rows that stay.
        seen: Positions of the rows that went through the layer, ascending, long ``[batch, seen]``, -1 for padding; None
            where all did.

    Raises:
        UnsupportedFeatureError: See :func:`mark`.
    """
    cache_layer: Any = cache.layers[layer]
    if not hasattr(cache_layer, "rows"):
        _check_layer(cache_layer)
        cache_layer.__class__ = PRUNED_CLASSES[type(cache_layer)]
    held = cache_layer.keys.shape[-2]
    width = rows.length if seen is None else seen.shape[1]
    wanted = rows.positions[:, -held:]
    place = wanted if seen is None else torch.searchsorted(seen.contiguous(), wanted.contiguous())
    index = (place - (width - held)).masked_fill(wanted < 0, -1)
    cache_layer.keys, cache_layer.values = (take(s, index, -2, 0) for s in (cache_layer.keys, cache_layer.values))
    if held < width:  # of a window; layers without one share their positions, and with them the masks of a step
        rows = replace(rows, positions=wanted.masked_fill(index < 0, -1), ragged=True)
    cache_layer.rows = rows
    cache_layer.hidden_length = 0 if hasattr(cache_layer, "cumulative_length") else rows.dropped


def pruned_layer(cache: Any, layer: int) -> PrunedCacheLayer | None:
    """The pruned cache layer, or None where that layer's cache is whole."""
    layers = getattr(cache, "layers", ())
    cache_layer = layers[layer] if len(layers) > layer else None
    return cache_layer if hasattr(cache_layer, "rows") else None


def check_cache(cache: Any, first: int) -> None:
    """Refuse caches that cannot be compacted exactly.

    Args:
        cache: The KV cache of a call, may be None.
        first: First layer that sees fewer tokens.

    Raises:
        UnsupportedFeatureError: Names the cache's class.
    """
    if cache is None:
        return
    if not isinstance(cache, DynamicCache):
        raise UnsupportedFeatureError(f"a {type(cache).__name__} is not supported", _CACHE_FIX)
    if getattr(cache, "offloading", False):
        raise UnsupportedFeatureError("an offloaded cache is not supported", _CACHE_FIX)
    for cache_layer in cache.layers[first:]:
        if not hasattr(cache_layer, "rows"):
            _check_layer(cache_layer)


def _check_layer(cache_layer: Any) -> None:
    if type(cache_layer) not in PRUNED_CLASSES:
        raise UnsupportedFeatureError(f"a cache with {type(cache_layer).__name__} is not supported", _CACHE_FIX)


def check_lengths(cache: Any, layers: Sequence[int]) -> None:
    """Refuse a cache whose layers stand for sequences of different lengths.

    A forward that was interrupted, a refused ``crop`` and a cache rebuilt from the tensors of a pruned one leave such
    a cache behind.

    Args:
        cache: The KV cache of a call, may be None.
        layers: Layers to compare with the first one.

    Raises:
        UnsupportedFeatureError: Names the lengths.
    """
    held = getattr(cache, "layers", ())
    if not held or not isinstance(held[0], DynamicLayer):
        return
    length = held[0].get_seq_length()
    for number in layers:
        layer = held[number] if number < len(held) else None  # layers are added as they run
        if layer is not None and not isinstance(layer, DynamicLayer):
            continue
        other = 0 if layer is None else layer.get_seq_length()
        if other != length:
            raise UnsupportedFeatureError(
                f"the KV cache stands for {length} tokens in layer 0 and {other} in layer {number}: a forward was"
                " interrupted, or the cache was cropped or rebuilt",
                "prefill again with a new cache",
            )


def cache_bytes(cache: Any, unpruned: bool = False) -> int:
    """Bytes of the keys and values that a cache holds, or (``unpruned``) would hold if nothing had been dropped."""
    total = 0
    for cache_layer in getattr(cache, "layers", ()):
        if unpruned and isinstance(cache_layer, PrunedCacheLayer):
            total += cache_layer.unpruned_bytes()
            continue
        for name in ("keys", "values"):
            states = getattr(cache_layer, name, None)
            if isinstance(states, Tensor):
                total += states.numel() * states.element_size()
    return total
