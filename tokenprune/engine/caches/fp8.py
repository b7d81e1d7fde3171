"""Pruned layers that store 8-bit floats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import cache_utils

from tokenprune.engine.caches.dynamic import PrunedDynamicLayer
from tokenprune.engine.caches.layer import PrunedCacheLayer
from tokenprune.engine.caches.rows import Rows
from tokenprune.errors import UnsupportedFeatureError
from tokenprune.ops.rows import take


class PrunedFp8Layer(PrunedDynamicLayer):
    """A pruned layer that stores 8-bit floats, each row rounded by the scale of the layer, as in the unpruned one.

    :func:`fp8_classes` joins it with the layer of transformers, which version 5.17 does not have.
    """

    rounded = "8-bit floats"
    cumulative_length: int
    _quantized_keys: tuple[Tensor, Tensor]
    _quantized_values: tuple[Tensor, Tensor]

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


def fp8_classes() -> list[type[PrunedCacheLayer]]:
    """The class for the installed transformers; none where it has no such cache."""
    plain = getattr(cache_utils, "Fp8QuantizedLayer", None)
    return [] if plain is None else [type(f"Pruned{plain.__name__}", (PrunedFp8Layer, plain), {"plain": plain})]
