"""Rows: caches that are none of the kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import DynamicCache, QuantizedCache, StaticCache, cache_utils

from tests.support import matrix
from tests.support.compatibility.judging import Apply, Found, Row
from tests.support.compatibility.kinds import DEFAULT, Use, over
from tests.support.tiny.core import CACHE

HOW = matrix.method([1], {"name": "keep_ratio", "ratio": 0.4})
Make = Callable[[Use], dict[str, Any]]
"""Options of `generate`."""


def generates(make: Make) -> dict[str, Any]:
    """A greedy generation with options of `generate`."""

    def cell(kind: str, apply: Apply) -> Found:
        use = Use(kind)
        options = make(use)
        with apply(use.model, HOW) as run:
            out = use.generate(**{CACHE: None, **options})
        return use.judged(run, out)

    return over((DEFAULT,), cell)


def offloaded(use: Use) -> dict[str, Any]:
    """A cache that would be moved to the host. Moving it needs an accelerator; being refused does not."""
    cache = DynamicCache(config=use.model.config.get_text_config())
    cache.offloading = True
    return {CACHE: cache}


def static_offloaded(use: Use) -> dict[str, Any]:
    """The same of a static cache."""
    cache = StaticCache(config=use.model.config.get_text_config(), max_cache_len=64)
    cache.offloading = True
    return {CACHE: cache}


def quantized(layer: str) -> Make:
    """A cache of a library that need not be installed: its layers are there, and refused before they run."""

    def make(use: Use) -> dict[str, Any]:
        kind: Any = getattr(cache_utils, layer)
        cache = QuantizedCache.__new__(QuantizedCache)
        cache_utils.Cache.__init__(cache, layers=[])
        for _ in range(use.model.config.get_text_config().num_hidden_layers):
            made = kind.__new__(kind)
            cache_utils.QuantizedLayer.__init__(made)
            cache.layers.append(made)
        return {CACHE: cache}

    return make


class YourLayer(cache_utils.DynamicLayer):  # type: ignore[misc]
    """A cache layer of somebody's."""


def own_layers(use: Use) -> dict[str, Any]:
    """A cache with layers that the engine does not know."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = YourLayer
    return {CACHE: cache}


def paged(use: Use) -> dict[str, Any]:
    """The cache of continuous batching."""
    return {"cache_implementation": "paged"}


OFFLOADED = {"": "engine/test_invariants.py::test_10_an_offloaded_cache_is_refused"}
UNKNOWN = {"": "engine/test_cache.py::test_an_unknown_type_of_cache_layer_is_refused"}

ROWS = (
    Row("offloaded `DynamicCache`", generates(offloaded), OFFLOADED),
    Row("offloaded `StaticCache`", generates(static_offloaded), OFFLOADED),
    Row("`QuantizedCache` of quanto", generates(quantized("QuantoQuantizedLayer")), UNKNOWN),
    Row("`QuantizedCache` of HQQ", generates(quantized("HQQQuantizedLayer")), UNKNOWN),
    Row("layers of your own class", generates(own_layers), UNKNOWN),
    Row("paged", generates(paged), {"": "engine/test_refusals.py::test_a_paged_cache_is_refused"}),
)
