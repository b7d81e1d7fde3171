"""Pruned layers that store their states rounded: 8-bit floats, or integers in groups."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import __version__, cache_utils

from tokenprune.engine.caches.dynamic import PrunedDynamicLayer
from tokenprune.engine.caches.layer import PrunedCacheLayer
from tokenprune.engine.caches.rows import Rows
from tokenprune.errors import UnsupportedFeatureError
from tokenprune.ops.rows import take


class PrunedQuantizedLayer(PrunedDynamicLayer):
    """A pruned layer that rounds what it stores; :func:`quantized_classes` joins it with the layers of transformers."""

    cumulative_length: int
    _quantized_keys: Any
    _quantized_values: Any

    @property
    def width(self) -> int:
        """See :attr:`PrunedCacheLayer.width`."""
        return self.cumulative_length

    @classmethod
    def held(cls, layer: Any, past: int) -> int:
        """See :meth:`PrunedCacheLayer.held`."""
        return int(layer.cumulative_length)

    @classmethod
    def stored_keys(cls, layer: Any, past: int) -> Tensor:
        """See :meth:`PrunedCacheLayer.stored_keys`."""
        keys: Tensor = layer._dequantize(layer._quantized_keys)
        return keys

    def take_off(self, removed: int) -> None:
        """See :meth:`PrunedCacheLayer.take_off`."""
        if removed:
            raise UnsupportedFeatureError(
                f"a crop of a cache of {self.rounded}: transformers cannot crop it either",
                "use the default DynamicCache",
            )

    def batch_select_indices(self, indices: Tensor) -> None:
        """Pick samples; refused, since transformers would leave what is rounded as it is."""
        raise self._whole_batch("pick samples of")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat samples; refused, since transformers would leave what is rounded as it is."""
        raise self._whole_batch("repeat samples of")

    def bytes_per_row(self, rows: int) -> int:
        """See :meth:`PrunedCacheLayer.bytes_per_row`."""
        return stored_bytes(self) // max(rows, 1)

    def _whole_batch(self, what: str) -> UnsupportedFeatureError:
        return UnsupportedFeatureError(
            f"transformers {__version__} cannot {what} a cache of {self.rounded}", "use the default DynamicCache"
        )


class PrunedFp8Layer(PrunedQuantizedLayer):
    """A pruned layer that stores 8-bit floats, each row rounded by the scale of the layer, as in the unpruned one."""

    @property
    def rounded(self) -> str:
        """See :attr:`PrunedCacheLayer.rounded`."""
        return "8-bit floats"

    def keep(self, index: Tensor, width: int, rows: Rows) -> None:
        """See :meth:`PrunedCacheLayer.keep`."""

        def kept(states: Tensor) -> Tensor:  # gather knows no 8-bit floats
            return take(states.view(torch.uint8), index, -2, 0).view(states.dtype)

        (keys, key_scale), (values, value_scale) = self._quantized_keys, self._quantized_values
        self._quantized_keys, self._quantized_values = (kept(keys), key_scale), (kept(values), value_scale)
        self.cumulative_length = index.shape[1]
        self.begin(rows)


class PrunedGroupedLayer(PrunedQuantizedLayer):
    """A pruned layer that stores integers of a few bits, with a scale for each group, and its last rows as they are."""

    nbits: int
    cannot_be_cut = "integers in groups of several rows, which cannot be picked"

    @property
    def rounded(self) -> str:
        """See :attr:`PrunedCacheLayer.rounded`."""
        return f"{self.nbits}-bit integers"

    @classmethod
    def stored_keys(cls, layer: Any, past: int) -> Tensor:
        """See :meth:`PrunedCacheLayer.stored_keys`."""
        keys = super().stored_keys(layer, past)
        moved = getattr(layer, "_pending_beam_idx", None)  # beams that were picked since the last step
        keys = keys if moved is None else keys[moved.to(keys.device)]
        return torch.cat([keys, layer.keys], dim=-2) if layer.keys.dim() == 4 else keys  # the latter are not rounded

    def keep(self, index: Tensor, width: int, rows: Rows) -> None:
        """See :meth:`PrunedCacheLayer.keep`; refused before anything runs."""
        raise AssertionError(self.cannot_be_cut)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Pick samples, as beam search does."""
        if not hasattr(self, "_pending_beam_idx"):  # before 5.24, only the rows that are not rounded were picked
            raise self._whole_batch("pick beams of")
        super().reorder_cache(beam_idx)


#: The layers of transformers that round, as far as the installed version has them, and what joins them.
_ROUNDING: dict[str, type[PrunedQuantizedLayer]] = {
    "Fp8QuantizedLayer": PrunedFp8Layer,
    "QuantoQuantizedLayer": PrunedGroupedLayer,
    "HQQQuantizedLayer": PrunedGroupedLayer,
}


def quantized_classes() -> list[type[PrunedCacheLayer]]:
    """The classes for the installed transformers."""
    found = {getattr(cache_utils, name, None): pruned for name, pruned in _ROUNDING.items()}
    return [
        type(f"Pruned{plain.__name__}", (pruned, plain), {"plain": plain})
        for plain, pruned in found.items()
        if plain is not None
    ]


def stored_bytes(layer: Any) -> int:
    """Bytes of the keys and values that a cache layer stores, plain or pruned; scales of whole layers left out."""
    names = ("keys", "values", "_quantized_keys", "_quantized_values")
    return sum(_bytes(getattr(layer, name, None)) for name in names)


def _bytes(stored: Any) -> int:
    """Bytes of the tensors in a value: a tensor, also one that is made of others, or a collection."""
    if isinstance(stored, Tensor):
        parts = getattr(stored, "__tensor_flatten__", None)
        if parts is not None:
            return sum(_bytes(getattr(stored, name)) for name in parts()[0])
        return stored.numel() * stored.element_size() if stored.dim() else 0
    if isinstance(stored, Mapping):
        stored = tuple(stored.values())
    return sum(map(_bytes, stored)) if isinstance(stored, tuple) else 0
