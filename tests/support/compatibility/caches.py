"""Rows: caches that are none of the kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import DynamicCache, QuantizedCache, StaticCache, cache_utils

from tests.support import matrix
from tests.support.compatibility.judging import Apply, Found, Row
from tests.support.compatibility.kinds import DEFAULT, Use, over
from tests.support.quanto import use_no_extension
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


def quantized(backend: str, **how: int) -> Make:
    """A cache of integers in groups."""

    def make(use: Use) -> dict[str, Any]:
        use_no_extension()
        return {CACHE: QuantizedCache(backend, use.model.config.get_text_config(), q_group_size=16, **how)}

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
GROUPED = {"": "engine/test_quantized.py::test_groups_within_rows_are_rounded_as_in_the_unpruned_cache"}

ROWS = (
    Row("offloaded `DynamicCache`", generates(offloaded), OFFLOADED),
    Row("offloaded `StaticCache`", generates(static_offloaded), OFFLOADED),
    Row("`QuantizedCache` of quanto", generates(quantized("quanto")), GROUPED),
    Row("`QuantizedCache` of HQQ", generates(quantized("hqq", axis_key=1, axis_value=1)), GROUPED),
    Row("layers of your own class", generates(own_layers), UNKNOWN),
    Row("paged", generates(paged), {"": "engine/test_refusals.py::test_a_paged_cache_is_refused"}),
)
