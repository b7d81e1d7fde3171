"""The one list of the cache layers that can be cut exactly."""

from typing import Any

from tokenprune.engine.caches.dynamic import PrunedDynamicLayer, PrunedSlidingWindowLayer
from tokenprune.engine.caches.layer import PrunedCacheLayer
from tokenprune.engine.caches.quantized import quantized_classes
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
