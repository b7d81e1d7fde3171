"""KV-cache layers that know which positions they hold.

After a pruned prefill the cache of a pruned layer is shorter than the sequence. Models size their masks and count
their positions by asking cache layers for their length, so a pruned layer must answer with the *unpruned* length:
then every mask that arrives at a layer covers the whole sequence, whichever layer it was sized by, and a decode
step without explicit ``position_ids`` goes on at the right position. The rows travel with the cache through beam
search (``reorder_cache``) and copies.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from tokenprune.errors import UnsupportedFeatureError
from tokenprune.ops.rows import hidden_value, take

#: Cache layers that the engine can compact exactly.
PLAIN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)


@dataclass(frozen=True)
class Rows:
    """What a pruned layer's cache holds of the prompt.

    Attributes:
        positions: Unpruned position of each cached prompt row, long ``[batch, kept]``, -1 for padding.
        length: Unpruned length of the prompt.
        ragged: Whether any row is padding (known on the host).
        owner: Key of the run that pruned it.
    """

    positions: Tensor
    length: int
    ragged: bool
    owner: str

    @property
    def dropped(self) -> int:
        """Rows by which the cache is shorter than the sequence."""
        return self.length - self.positions.shape[1]

    @cached_property
    def _padding(self) -> Tensor:
        return self.positions < 0

    def cut(self, mask: Tensor) -> Tensor:
        """The columns of the kept rows and of all that followed the prompt, of a mask that covers the whole sequence.

        Args:
            mask: ``[batch or 1, heads or 1, new, length + ...]``, or ``[batch, length + ...]`` for flash attention.

        Returns:
            The mask over the keys that the cache holds.
        """
        prompt = take(mask[..., : self.length], self.positions, -1, 0)
        if self.ragged:
            absent = self._padding if mask.dim() == 2 else self._padding[:, None, None, :]
            prompt = prompt.masked_fill(absent, hidden_value(mask))
        rest = mask[..., self.length :]
        return torch.cat([prompt, rest.expand(*prompt.shape[:-1], -1)], dim=-1)


class PrunedLayer(Protocol):
    """A plain cache layer that answers for the unpruned sequence; made by :func:`mark`."""

    rows: Rows
    hidden_length: int
    keys: Tensor

    def get_seq_length(self) -> int:
        """Length of the sequence that the cache stands for, dropped rows included."""

    def columns(self, new: int) -> Tensor:
        """Unpruned positions of all keys of a step that adds ``new`` tokens, long ``[batch, keys]``."""


@functools.cache
def _pruned(plain: Any) -> type:
    """The pruned form of a cache-layer class: the same tensors, but the unpruned length."""

    class Pruned(plain):  # type: ignore[misc]  # one base only: an object's class can be swapped for a subclass
        rows: Rows
        hidden_length: int

        def get_seq_length(self) -> int:
            length = int(super().get_seq_length())
            return length + self.hidden_length if length else 0

        def columns(self, new: int) -> Tensor:
            positions: Tensor = self.rows.positions
            fresh = torch.arange(self.rows.length, self.get_seq_length() + new, device=positions.device)
            every = torch.cat([positions, fresh.expand(positions.shape[0], -1)], dim=1)
            return every[:, every.shape[1] - self.keys.shape[-2] - new :]

        def reorder_cache(self, beam_idx: Tensor) -> None:
            super().reorder_cache(beam_idx)
            self._select(beam_idx)

        def batch_select_indices(self, indices: Tensor) -> None:
            super().batch_select_indices(indices)
            self._select(indices)

        def batch_repeat_interleave(self, repeats: int) -> None:
            super().batch_repeat_interleave(repeats)
            self.rows = replace(self.rows, positions=self.rows.positions.repeat_interleave(repeats, dim=0))

        def crop(self, *args: Any, **kwargs: Any) -> None:
            raise UnsupportedFeatureError(
                "a pruned KV cache cannot be cropped (assisted decoding?)", "use greedy, sampling or beam search"
            )

        def reset(self) -> None:
            self.__class__ = plain  # an empty layer is an ordinary one again
            del self.rows, self.hidden_length
            self.reset()

        def _select(self, index: Tensor) -> None:
            positions = self.rows.positions
            self.rows = replace(self.rows, positions=positions[index.to(positions.device)])

    Pruned.__name__ = f"Pruned{plain.__name__}"
    return Pruned


def mark(cache: Cache, layer: int, rows: Rows) -> None:
    """Tell the cache of a layer which rows of the prompt it holds."""
    held: Any = cache.layers[layer]
    held.hidden_length = rows.dropped
    if hasattr(held, "cumulative_length"):
        held.cumulative_length += rows.dropped
        held.hidden_length = 0
    kind: Any = type(held)
    held.__class__ = _pruned(kind)
    held.rows = rows


def pruned_layer(cache: Any, layer: int) -> PrunedLayer | None:
    """The pruned cache layer, or None where that layer's cache is whole."""
    layers = getattr(cache, "layers", ())
    held = layers[layer] if len(layers) > layer else None
    return held if hasattr(held, "rows") else None


def check_cache(cache: Any, first: int) -> None:
    """Refuse caches that cannot be compacted exactly.

    Args:
        cache: ``past_key_values`` of a call, may be None.
        first: First layer that sees fewer tokens.

    Raises:
        UnsupportedFeatureError: Names the cache's class.
    """
    if cache is None:
        return
    fix = "use the default DynamicCache"
    if not isinstance(cache, DynamicCache):
        raise UnsupportedFeatureError(f"a {type(cache).__name__} is not supported", fix)
    if getattr(cache, "offloading", False):
        raise UnsupportedFeatureError("an offloaded cache is not supported", fix)
    for held in cache.layers[first:]:
        if type(held) not in PLAIN_LAYERS and not hasattr(held, "rows"):
            raise UnsupportedFeatureError(f"a cache with {type(held).__name__} is not supported", fix)


def cache_bytes(cache: Any) -> int:
    """Bytes of all keys and values that a cache holds now."""
    total = 0
    for held in getattr(cache, "layers", ()):
        for name in ("keys", "values"):
            states = getattr(held, name, None)
            if isinstance(states, Tensor):
                total += states.numel() * states.element_size()
    return total
