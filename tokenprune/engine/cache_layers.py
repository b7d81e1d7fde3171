"""Cache layers that hold fewer rows than the sequence: a class for each class of transformers that can be cut exactly.

After a pruned prefill the cache of a pruned layer is shorter than the sequence. Models size their masks and count
their positions by asking cache layers for their length, so a pruned layer answers with the *unpruned* length: then
every mask that arrives at a layer covers the whole sequence, whichever layer it was sized by, and a decode step without
explicit ``position_ids`` goes on at the right position. The rows travel with the cache through beam search
(``reorder_cache``) and copies.

Each class answers for itself: what it can follow, the room it reserves, the columns of a mask that its keys are, the
bytes it holds. :data:`PRUNED_CLASSES` is the one list of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer

from tokenprune.core.call_arguments import CACHE_NAMES
from tokenprune.errors import UnsupportedFeatureError
from tokenprune.ops.rows import decode_mask, hidden_value, take

#: Static layers behind a stage have room for a multiple of so many rows: prompts that lose a few tokens more or less
#: share a compiled graph.
ROUNDED_TO = 64


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
    _columns: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False, compare=False)

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

    def columns(self, keys: int, total: int) -> Tensor:
        """Unpruned position of each key of a layer that has room for more; the layers of a stage share one tensor.

        Args:
            keys: Keys of the layer: those of the prompt, and room for later tokens.
            total: Tokens of the longest sequence.

        Returns:
            Long ``[batch, keys]``; -1 for padding, and for room that nothing will fill.
        """
        if (keys, total) not in self._columns:
            batch, kept = self.positions.shape
            later = torch.arange(self.length, self.length + keys - kept, device=self.positions.device)
            later = later.masked_fill(later >= total, -1).expand(batch, -1)
            self._columns[keys, total] = torch.cat([self.positions, later], dim=1)
        return self._columns[keys, total]


class PrunedCacheLayer(ABC):
    """Mixin for cache layers that hold fewer rows than the sequence; :meth:`begin` follows a change of the class.

    Like the cache layers of transformers it is an ``ABC`` without slots: Python swaps the class of an object only for
    one of the same layout.
    """

    plain: type
    rows: Rows
    keys: Tensor
    values: Tensor

    @classmethod
    def check(cls, layer: Any, window: int | None) -> None:
        """Refuse a plain layer that cannot be cut exactly.

        Args:
            layer: The layer.
            window: The sliding window of the decoder layer; None where it sees everything.

        Raises:
            UnsupportedFeatureError: It cannot.
        """
        return

    @classmethod
    def reserve(cls, layer: Any, width: int, kept: int) -> int:
        """Prepare an empty layer for the rows that are left of a prompt.

        Args:
            layer: The plain layer.
            width: Tokens of the unpruned prompt.
            kept: Rows that are left.

        Returns:
            Free rows that its keys will have behind those of the prompt.

        Raises:
            UnsupportedFeatureError: The prompt is longer than the cache.
        """
        return 0

    @abstractmethod
    def begin(self, rows: Rows) -> None:
        """Note which rows the layer holds, after the prefill."""

    @abstractmethod
    def keep(self, index: Tensor, width: int, rows: Rows) -> None:
        """Cut the layer to some of its rows, after the prefill.

        Args:
            index: Of the rows that stay, long ``[batch, kept]``, -1 for padding.
            width: Rows that went through the layer; of these it may hold the last ones only.
            rows: What it holds from now on.
        """

    @abstractmethod
    def held(self, width: int) -> int:
        """Rows that the layer holds of ``width`` that went through it."""

    #: How a layer stores what is not stored as it was computed, for reports.
    rounded: str | None = None

    @property
    def width(self) -> int:
        """Rows of its keys."""
        return self.keys.shape[-2]

    @property
    def hides(self) -> bool:
        """Whether some of its keys are not to be seen even where the model made no mask."""
        return self.rows.ragged

    @abstractmethod
    def step_mask(self, mask: Tensor | None, new: int, two_dimensional: bool) -> Tensor:
        """The mask of a step that adds ``new`` tokens, over the keys that this layer holds.

        Args:
            mask: The mask that the model made for the unpruned cache; None where everything is visible.
            new: Tokens of the step.
            two_dimensional: Whether flash attention reads it: ``[batch, keys]`` where the model made none.
        """

    @abstractmethod
    def unpruned_bytes(self) -> int:
        """Bytes that the layer would hold, had nothing been dropped."""

    def crop(self, tokens_to_remove: int) -> None:
        """Take off the last tokens, as assisted decoding does with those that were not accepted.

        Args:
            tokens_to_remove: Their number, negative; transformers before 5.18 takes the length that is left, too.

        Raises:
            UnsupportedFeatureError: Tokens of the prompt would be taken off: which of its rows were dropped is decided.
        """
        layer: Any = self
        length = int(layer.get_seq_length())
        removed = -tokens_to_remove if tokens_to_remove <= 0 else max(length - tokens_to_remove, 0)
        behind = length - self.rows.length
        if removed > behind:
            raise UnsupportedFeatureError(
                f"a pruned KV cache cannot be cropped by {removed} tokens: {behind} follow its prompt, and which rows"
                " of the prompt are kept was decided with all of it",
                "crop no token of the prompt, or prefill again",
            )
        self.take_off(removed)

    @abstractmethod
    def take_off(self, removed: int) -> None:
        """Forget the last tokens, none of which belongs to the prompt."""

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Pick samples, as beam search does."""
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self.pick(lambda values: values[beam_idx.to(values.device)])

    def pick(self, change: Callable[[Tensor], Tensor]) -> None:
        """Note that the layer holds other samples; ``change`` picks or repeats along the batch axis."""
        self.rows = self.rows.of_samples(change)

    def check_owner(self) -> None:
        """Refuse to be extended outside the block that pruned the layer; see :meth:`CacheOwner.check`."""
        thread = self.rows.owner.thread
        # asked here first: this runs in every layer of every step
        if thread is None or not thread.calls or not thread.calls[-1].continues_pruned:
            self.rows.owner.check()

    def bytes_per_row(self, rows: int) -> int:
        """Bytes of one of ``rows`` rows of the keys and values."""
        return sum(states.element_size() * states.numel() // max(rows, 1) for states in (self.keys, self.values))


class PrunedDynamicLayer(PrunedCacheLayer, DynamicLayer):  # type: ignore[misc]
    """A pruned layer with full attention."""

    plain: type = DynamicLayer
    hidden_length: int  # rows that the plain layer does not count

    def begin(self, rows: Rows) -> None:
        """See :meth:`PrunedCacheLayer.begin`."""
        self.rows, self.hidden_length = rows, rows.dropped

    def keep(self, index: Tensor, width: int, rows: Rows) -> None:
        """See :meth:`PrunedCacheLayer.keep`."""
        self.keys, self.values = (take(states, index, -2, 0) for states in (self.keys, self.values))
        self.begin(rows)

    def held(self, width: int) -> int:
        """See :meth:`PrunedCacheLayer.held`."""
        return self.width

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add keys and values, inside the block that pruned the cache."""
        self.check_owner()
        plain: Any = self.plain
        states: tuple[Tensor, Tensor] = plain.update(self, key_states, value_states, *args, **kwargs)
        return states

    def get_seq_length(self) -> int:
        """Length of the sequence that the cache stands for, dropped rows included."""
        length = int(super().get_seq_length())
        return length + self.hidden_length if length else 0

    def step_mask(self, mask: Tensor | None, new: int, two_dimensional: bool) -> Tensor:
        """See :meth:`PrunedCacheLayer.step_mask`."""
        total = self.get_seq_length() + new
        width = self.width + new
        if mask is not None and mask.shape[-1] == total and width == total - self.rows.dropped:
            return self.rows.cut(mask)
        made = decode_mask(mask, self._columns(new), total, new)  # no mask, or a sliding window's
        return made[:, 0, -1] if mask is None and two_dimensional else made

    def take_off(self, removed: int) -> None:
        """See :meth:`PrunedCacheLayer.take_off`."""
        left = self.width - removed
        self.keys, self.values = self.keys[..., :left, :], self.values[..., :left, :]

    def unpruned_bytes(self) -> int:
        """See :meth:`PrunedCacheLayer.unpruned_bytes`."""
        return self.rows.length * self.bytes_per_row(self.width)

    def _columns(self, new: int) -> Tensor:
        """Unpruned positions of all keys of a step that adds ``new`` tokens, long ``[batch, keys]``."""
        positions = self.rows.positions
        fresh = torch.arange(self.rows.length, self.get_seq_length() + new, device=positions.device)
        every = torch.cat([positions, fresh.expand(positions.shape[0], -1)], dim=1)
        return every[:, every.shape[1] - self.width - new :]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Pick samples."""
        super().batch_select_indices(indices)
        self.pick(lambda values: values[indices.to(values.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sample."""
        super().batch_repeat_interleave(repeats)
        self.pick(lambda values: values.repeat_interleave(repeats, dim=0))

    def reset(self) -> None:
        """Empty the layer; an empty layer is an ordinary one again."""
        self.__class__ = self.plain
        del self.rows, self.hidden_length
        self.reset()


class PrunedSlidingWindowLayer(PrunedDynamicLayer, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """A pruned layer with a sliding window, which is counted in original positions."""

    plain = DynamicSlidingWindowLayer

    def begin(self, rows: Rows) -> None:
        """See :meth:`PrunedCacheLayer.begin`. The layer counts the sequence by itself."""
        self.rows, self.hidden_length = rows, 0
        self.cumulative_length += rows.dropped

    def keep(self, index: Tensor, width: int, rows: Rows) -> None:
        """See :meth:`PrunedCacheLayer.keep`. What a sample kept before the window is padding."""
        held = self.held(width)
        index = (index - (width - held)).masked_fill(index < 0, -1)[:, -held:]
        self.keys, self.values = (take(states, index, -2, 0) for states in (self.keys, self.values))
        if held < width:  # layers without a window share their positions, and with them the masks of a step
            rows = replace(rows, positions=rows.positions[:, -held:].masked_fill(index < 0, -1), ragged=True)
        self.rows, self.hidden_length = rows, 0

    @classmethod
    def check(cls, layer: Any, window: int | None) -> None:
        """See :meth:`PrunedCacheLayer.check`."""
        if getattr(layer, "record_past", False):
            raise UnsupportedFeatureError(
                "assisted decoding with a sliding window: the layer keeps rows of its past by their number, and dropped"
                " ones are missing",
                "use greedy, sampling or beam search, or prune no layer with a window",
            )

    def take_off(self, removed: int) -> None:
        """See :meth:`PrunedCacheLayer.take_off`. Rows that left the window do not come back."""
        if removed and self.cumulative_length >= self.sliding_window:
            raise UnsupportedFeatureError(
                f"a crop of a cache that stands for {self.cumulative_length} tokens, whose window is"
                f" {self.sliding_window}: rows that left the window do not come back",
                "prefill again",
            )
        super().take_off(removed)
        self.cumulative_length -= removed

    def unpruned_bytes(self) -> int:
        """See :meth:`PrunedCacheLayer.unpruned_bytes`."""
        width: int = min(self.rows.length, self.sliding_window - 1)
        return width * self.bytes_per_row(self.width)


class PrunedStaticLayer(PrunedCacheLayer, StaticLayer):  # type: ignore[misc]
    """A pruned layer of a static cache: it has room for as many rows less as were dropped.

    Compiled decode steps trace it. What differs between prompts of one shape is in tensors, so that they share a graph:
    the rows of the prompt in ``columns``, the number of those that were dropped in ``hidden_length``.

    Attributes:
        full_length: Tokens that the layer had room for before, and that the masks of the model cover.
        hidden_length: Rows that the plain layer does not count, long, of no axis.
        prompt_length: Tokens of the unpruned prompt, long, of no axis.
        columns: Unpruned position of each key, long ``[batch, keys]``, -1 where there is none.
        mask_is_cut: Whether the step that Dynamo traces has cut the mask of this layer: a graph asks nobody else.
    """

    plain: type = StaticLayer
    full_length: int
    hidden_length: Tensor
    prompt_length: Tensor
    columns: Tensor
    mask_is_cut = False

    @classmethod
    def reserve(cls, layer: Any, width: int, kept: int) -> int:
        """See :meth:`PrunedCacheLayer.reserve`."""
        full: int = getattr(layer, "full_length", layer.max_cache_len)
        if width > full:
            raise UnsupportedFeatureError(
                f"the static cache has room for {full} tokens, and the prompt has {width} before it is pruned",
                f"give the cache max_cache_len={width} and one for each new token: positions count dropped tokens",
            )
        room = full - width + kept
        layer.full_length = full
        layer.max_cache_len = min(-(-room // ROUNDED_TO) * ROUNDED_TO, full)
        if layer.is_initialized:  # in advance, or by a prompt before a reset: it had room for everything
            layer.keys = layer.values = None
            layer.is_initialized = False
        layer.__class__ = cls  # its reset gives the room back, also where the prefill does not reach its end
        return int(layer.max_cache_len) - kept

    def begin(self, rows: Rows) -> None:
        """See :meth:`PrunedCacheLayer.begin`."""
        self.rows = rows
        self.hidden_length = torch.full_like(self.cumulative_length, rows.dropped)
        self.prompt_length = torch.full_like(self.cumulative_length, rows.length)
        self.columns = rows.columns(self.max_cache_len, self.full_length)

    def keep(self, index: Tensor, width: int, rows: Rows) -> None:
        """See :meth:`PrunedCacheLayer.keep`."""
        states = [take(states[:, :, :width], index, -2, 0) for states in (self.keys, self.values)]
        self.reserve(self, rows.length, index.shape[1])
        self.cumulative_length.zero_()
        StaticLayer.update(self, *states)
        self.begin(rows)

    def held(self, width: int) -> int:
        """See :meth:`PrunedCacheLayer.held`."""
        return width

    @property
    def hides(self) -> bool:
        """See :attr:`PrunedCacheLayer.hides`. Free rows are behind the others."""
        return True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add keys and values, inside the block that pruned the cache."""
        if not hasattr(self, "rows"):  # the prefill
            states: tuple[Tensor, Tensor] = StaticLayer.update(self, key_states, value_states)
            return states
        if not (torch.compiler.is_compiling() and self.mask_is_cut):
            self.check_owner()
        self.mask_is_cut = False
        rows = torch.arange(key_states.shape[-2], device=key_states.device) + self.cumulative_length
        # room is rounded up: behind the last token of the full cache an index is out of range, as there
        rows = rows.masked_fill(rows + self.hidden_length >= self.full_length, self.max_cache_len)
        self.keys.index_copy_(2, rows, key_states)
        self.values.index_copy_(2, rows, value_states)
        self.cumulative_length.add_(key_states.shape[-2])  # in place: graphs know its address
        return self.keys, self.values

    def get_seq_length(self) -> Any:
        """Length of the sequence that the cache stands for: a tensor, as of the plain layer."""
        if not hasattr(self, "rows"):
            return self.cumulative_length if self.is_initialized else 0
        return self.cumulative_length + self.hidden_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that the model's masks cover, and where they begin: the whole sequence."""
        return self.full_length, 0

    def get_max_length(self) -> int:
        """Tokens that the cache has room for, dropped ones included."""
        return self.full_length

    def step_mask(self, mask: Tensor | None, new: int, two_dimensional: bool) -> Tensor:
        """See :meth:`PrunedCacheLayer.step_mask`. Flash attention is refused before."""
        columns = self.columns[:, None, None, :]
        if mask is None:
            last: Tensor = torch.arange(new, device=columns.device) + self.get_seq_length()
            return (columns >= 0) & (columns <= last[:, None])
        return take(mask, self.columns, -1, 0).masked_fill(columns.to(mask.device) < 0, hidden_value(mask))

    def take_off(self, removed: int) -> None:
        """See :meth:`PrunedCacheLayer.take_off`. Later tokens are written over the rows."""
        self.cumulative_length.sub_(removed)

    def unpruned_bytes(self) -> int:
        """See :meth:`PrunedCacheLayer.unpruned_bytes`."""
        return self.full_length * self.bytes_per_row(self.max_cache_len)

    def pick(self, change: Callable[[Tensor], Tensor]) -> None:
        """See :meth:`PrunedCacheLayer.pick`."""
        super().pick(change)
        self.columns = change(self.columns)

    def reset(self) -> None:
        """Empty the layer; an empty layer is an ordinary one again, with the room that it had."""
        layer: Any = self
        layer.__class__ = self.plain
        layer.max_cache_len = self.full_length
        layer.keys = layer.values = None  # made again at the next update
        layer.is_initialized = False
        for name in ("rows", "hidden_length", "prompt_length", "columns", "full_length", "mask_is_cut"):
            layer.__dict__.pop(name, None)
        layer.reset()


class PrunedStaticWindowLayer(PrunedStaticLayer, StaticSlidingWindowLayer):  # type: ignore[misc]
    """A pruned layer of a static cache whose window is not shorter than the cache: it sees everything."""

    plain = StaticSlidingWindowLayer

    @classmethod
    def check(cls, layer: Any, window: int | None) -> None:
        """See :meth:`PrunedCacheLayer.check`."""
        room = getattr(layer, "full_length", layer.max_cache_len)
        if window is None or room >= window:  # a layer as long as its window may belong to a longer cache
            raise UnsupportedFeatureError(
                f"a static cache that is longer than a sliding window of {window} tokens: such a layer forgets rows by"
                " their number, and dropped ones are missing",
                "give the cache a max_cache_len below the window, or use the default DynamicCache",
            )


class PrunedFp8Layer(PrunedDynamicLayer):
    """A pruned layer that stores 8-bit floats, each row rounded by the scale of the layer, as in the unpruned one.

    :func:`_fp8_classes` joins it with the layer of transformers, which version 5.17 does not have.
    """

    rounded = "8-bit floats"
    cumulative_length: int
    _quantized_keys: tuple[Tensor, Tensor]
    _quantized_values: tuple[Tensor, Tensor]

    @property
    def width(self) -> int:
        """See :attr:`PrunedCacheLayer.width`."""
        return self.cumulative_length

    def keep(self, index: Tensor, width: int, rows: Rows) -> None:
        """See :meth:`PrunedCacheLayer.keep`."""

        def kept(states: Tensor) -> Tensor:  # gather knows no 8-bit floats
            return take(states.view(torch.uint8), index, -2, 0).view(states.dtype)

        (keys, key_scale), (values, value_scale) = self._quantized_keys, self._quantized_values
        self._quantized_keys, self._quantized_values = (kept(keys), key_scale), (kept(values), value_scale)
        self.cumulative_length = index.shape[1]
        self.begin(rows)

    def take_off(self, removed: int) -> None:
        """See :meth:`PrunedCacheLayer.take_off`."""
        if removed:
            raise UnsupportedFeatureError(
                "a crop of a cache of 8-bit floats: transformers cannot crop it either", "use the default DynamicCache"
            )

    def bytes_per_row(self, rows: int) -> int:
        """See :meth:`PrunedCacheLayer.bytes_per_row`."""
        stored = (self._quantized_keys[0], self._quantized_values[0])
        return sum(states.element_size() * states.numel() // max(rows, 1) for states in stored)


def _fp8_classes() -> list[type[PrunedCacheLayer]]:
    plain = getattr(cache_utils, "Fp8QuantizedLayer", None)
    return [] if plain is None else [type(f"Pruned{plain.__name__}", (PrunedFp8Layer, plain), {"plain": plain})]


_CLASSES: list[type[PrunedCacheLayer]] = [
    PrunedDynamicLayer,
    PrunedSlidingWindowLayer,
    PrunedStaticLayer,
    PrunedStaticWindowLayer,
    *_fp8_classes(),
]

#: The cache layers that the engine can compact exactly, and what they become.
PRUNED_CLASSES: dict[type, type[PrunedCacheLayer]] = {layer.plain: layer for layer in _CLASSES}


def pruned_class(layer: Any) -> type[PrunedCacheLayer]:
    """What a layer becomes, or is.

    Raises:
        UnsupportedFeatureError: It cannot be compacted exactly.
    """
    if isinstance(layer, PrunedCacheLayer):
        return type(layer)
    if type(layer) not in PRUNED_CLASSES:
        raise UnsupportedFeatureError(
            f"a cache with {type(layer).__name__} is not supported", "use the default DynamicCache"
        )
    return PRUNED_CLASSES[type(layer)]
