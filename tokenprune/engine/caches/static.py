"""Pruned layers of a static cache, on which decode steps can be compiled."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

from tokenprune.engine.caches.layer import PrunedCacheLayer
from tokenprune.engine.caches.rows import Rows
from tokenprune.errors import UnsupportedFeatureError
from tokenprune.ops.rows import hidden_value, take

#: Static layers behind a stage have room for a multiple of so many rows: prompts that lose a few tokens more or less
#: share a compiled graph.
ROUNDED_TO = 64


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
        room = full - width + kept
        layer.full_length = full
        layer.max_cache_len = min(-(-room // ROUNDED_TO) * ROUNDED_TO, full)
        if layer.is_initialized:  # in advance, or by a prompt before a reset: it had room for everything
            layer.keys = layer.values = None
            layer.is_initialized = False
        layer.__class__ = cls  # its reset gives the room back, also where the prefill does not reach its end
        return int(layer.max_cache_len) - kept

    @classmethod
    def held(cls, layer: Any, past: int) -> int:
        """See :meth:`PrunedCacheLayer.held`."""
        return past - layer.rows.dropped if hasattr(layer, "rows") else past

    @classmethod
    def free(cls, layer: Any, rows: int) -> int:
        """See :meth:`PrunedCacheLayer.free`."""
        return int(layer.max_cache_len) - rows

    def begin(self, rows: Rows) -> None:
        """See :meth:`PrunedCacheLayer.begin`."""
        if not hasattr(self, "full_length"):  # it was whole until this turn, and keeps its room
            self.full_length = self.max_cache_len
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
