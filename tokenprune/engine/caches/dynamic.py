"""Pruned layers that grow: with full attention, and with a sliding window."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from tokenprune.engine.caches.layer import PrunedCacheLayer
from tokenprune.engine.caches.rows import Rows
from tokenprune.errors import UnsupportedFeatureError
from tokenprune.ops.rows import decode_mask, take


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
        return self.get_seq_length() * self.bytes_per_row(self.width)

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
        before = self.rows.dropped if hasattr(self, "rows") else 0
        self.rows, self.hidden_length = rows, 0
        self.cumulative_length += rows.dropped - before

    def keep(self, index: Tensor, width: int, rows: Rows) -> None:
        """See :meth:`PrunedCacheLayer.keep`. What a sample kept before the window is padding."""
        held = self.width
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
        width: int = min(self.get_seq_length(), self.sliding_window - 1)
        return width * self.bytes_per_row(self.width)
