"""The KV cache of a call: which of its layers are pruned, what cannot be pruned exactly, what it holds."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, QuantizedCache, StaticCache, StaticLayer

from tokenprune.adapters.decoder_stack import DecoderStack
from tokenprune.engine.caches.dynamic import PrunedDynamicLayer, PrunedSlidingWindowLayer
from tokenprune.engine.caches.layer import PrunedCacheLayer
from tokenprune.engine.caches.quantized import quantized_classes, stored_bytes
from tokenprune.engine.caches.rows import Rows
from tokenprune.engine.caches.static import PrunedStaticLayer, PrunedStaticWindowLayer
from tokenprune.errors import UnsupportedFeatureError

_CLASSES: list[type[PrunedCacheLayer]] = [
    PrunedDynamicLayer,
    PrunedSlidingWindowLayer,
    PrunedStaticLayer,
    PrunedStaticWindowLayer,
    *quantized_classes(),
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


def reserve(cache: Any, layer: int, width: int, kept: int) -> int:
    """Prepare the empty cache of a layer for the rows that are left; see :meth:`PrunedCacheLayer.reserve`.

    Args:
        cache: The KV cache, may be None.
        layer: The layer.
        width: Tokens of the unpruned prompt.
        kept: Rows that are left.
    """
    layers = getattr(cache, "layers", ())
    if layer >= len(layers):  # none, or it is added as the layer runs
        return 0
    return pruned_class(layers[layer]).reserve(layers[layer], width, kept)


def mark(cache: Cache, layer: int, rows: Rows) -> None:
    """Tell the cache of a layer which rows of the prompt it holds.

    Raises:
        UnsupportedFeatureError: The layer cannot be compacted exactly. :func:`check_cache` sees only layers that exist
            before the model runs; a cache, or a model that makes its own, may add others.
    """
    cache_layer: Any = cache.layers[layer]
    cache_layer.__class__ = pruned_class(cache_layer)
    cache_layer.begin(rows)


def cut(cache: Cache, layer: int, rows: Rows, index: Tensor, width: int) -> None:
    """Cut the cache of a layer before a stage to the rows that the stage kept, after the prefill.

    A layer with a sliding window holds only the last rows that it saw. What a sample kept before these is padding.

    Args:
        cache: The KV cache.
        layer: The layer.
        rows: The rows that stay.
        index: Their index among the rows that went through the layer, earlier turns included, long ``[batch, kept]``,
            -1 for padding.
        width: Number of the rows that went through it.

    Raises:
        UnsupportedFeatureError: See :func:`mark`.
    """
    cache_layer: Any = cache.layers[layer]
    cache_layer.__class__ = pruned_class(cache_layer)
    cache_layer.keep(index, width, rows)


def pruned_layer(cache: Any, layer: int) -> PrunedCacheLayer | None:
    """The pruned cache layer, or None where that layer's cache is whole."""
    layers = getattr(cache, "layers", ())
    cache_layer = layers[layer] if len(layers) > layer else None
    return cache_layer if hasattr(cache_layer, "rows") else None


def check_cache(cache: Any, first: int, stack: DecoderStack) -> None:
    """Refuse caches that cannot be compacted exactly.

    Args:
        cache: The KV cache of a call, may be None.
        first: First layer that sees fewer tokens.
        stack: The decoder layers.

    Raises:
        UnsupportedFeatureError: Names the cache's class.
    """
    if cache is None:
        return
    if not isinstance(cache, DynamicCache | StaticCache | QuantizedCache):
        raise _unsupported(f"a {type(cache).__name__}")
    if getattr(cache, "offloading", False):
        raise _unsupported("an offloaded cache")
    if isinstance(cache, StaticCache) and "flash" in stack.attention_implementation:
        raise _unsupported(f"a StaticCache with {stack.attention_implementation}")
    for number, cache_layer in enumerate(cache.layers[first:], first):
        if not hasattr(cache_layer, "rows"):
            pruned_class(cache_layer).check(cache_layer, stack.window(number))


def _unsupported(what: str) -> UnsupportedFeatureError:
    return UnsupportedFeatureError(f"{what} is not supported", "use the default DynamicCache")


def check_can_be_cut(cache: Any) -> None:
    """Refuse caches of which rows cannot be picked once they are filled, for methods that cut earlier layers' caches.

    Args:
        cache: The KV cache, may be None.

    Raises:
        UnsupportedFeatureError: Says how the cache stores its rows.
    """
    for layer in getattr(cache, "layers", ()):
        why = pruned_class(layer).cannot_be_cut
        if why is not None:
            raise UnsupportedFeatureError(
                f"cut_earlier_caches with a {type(cache).__name__} of {why}",
                "set cut_earlier_caches to false, or use another cache",
            )


def check_room(cache: Any, past: int, width: int) -> None:
    """Refuse a prompt that a static cache has no room for: in its layers that see everything, dropped tokens count.

    Args:
        cache: The KV cache, may be None.
        past: Tokens that it stands for.
        width: Tokens of the prompt before it is pruned.

    Raises:
        UnsupportedFeatureError: Names the room.
    """
    for layer in getattr(cache, "layers", ()):
        if not isinstance(layer, StaticLayer) or getattr(layer, "is_sliding", False):
            continue
        full: int = getattr(layer, "full_length", layer.max_cache_len)
        if past + width > full:
            behind = f", behind {past} of earlier turns" if past else ""
            raise UnsupportedFeatureError(
                f"the static cache has room for {full} tokens, and the prompt has {width} before it is pruned{behind}",
                f"give the cache max_cache_len={past + width} and one for each new token: positions count dropped"
                " tokens",
            )


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
    if not held or not isinstance(held[0], DynamicLayer | StaticLayer):
        return
    length = held[0].get_seq_length()
    for number in layers:
        layer = held[number] if number < len(held) else None  # layers are added as they run
        if layer is not None and not isinstance(layer, DynamicLayer | StaticLayer):
            continue
        other = 0 if layer is None else layer.get_seq_length()
        if _differ(length, other):
            raise UnsupportedFeatureError(
                f"the KV cache stands for {int(length)} tokens in layer 0 and {int(other)} in layer {number}: a forward"
                " was interrupted, or the cache was cropped or rebuilt",
                "prefill again with a new cache",
            )


def _differ(length: int | Tensor, other: int | Tensor) -> bool:
    """Whether two lengths differ. Static layers count on their device: there, the device itself raises."""
    counted = next((value for value in (length, other) if isinstance(value, Tensor)), None)
    if counted is None or counted.device.type == "cpu":
        return bool(length != other)
    equal = counted == (other if counted is length else length)
    torch._assert_async(equal, "the layers of the KV cache differ in length: a forward was interrupted")
    return False


def cache_bytes(cache: Any, unpruned: bool = False) -> int:
    """Bytes of the keys and values that a cache holds, or (``unpruned``) would hold if nothing had been dropped."""
    return sum(
        layer.unpruned_bytes() if unpruned and isinstance(layer, PrunedCacheLayer) else stored_bytes(layer)
        for layer in getattr(cache, "layers", ())
    )


def rounded_as(cache: Any) -> str | None:
    """How the pruned layers of a cache store what is not stored as it was computed; None where all is."""
    return next(
        (layer.rounded for layer in cache.layers if isinstance(layer, PrunedCacheLayer) and layer.rounded), None
    )
