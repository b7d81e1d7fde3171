"""A decode step, or a further turn of text, on a pruned cache."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tokenprune.adapters.base import Adapter
from tokenprune.engine.cache import pruned_layer
from tokenprune.engine.calls import Call
from tokenprune.engine.hooks import SharedHooks
from tokenprune.engine.layer_call import LayerCalls


class DecodeStep(Call):
    """Cuts each mask to the keys that a pruned layer's cache holds, and does nothing else.

    Args:
        layers: The calls of each decoder layer.
        hooks: The hooks on the layers.
        adapter: The model's adapter.
        hides: Whether some keys of a pruned layer are not to be seen even where the model made no mask.
    """

    continues_pruned = True

    def __init__(self, layers: Sequence[LayerCalls], hooks: SharedHooks, adapter: Adapter, hides: bool) -> None:
        super().__init__()
        self.hooks = (hooks,)
        self._layers = layers
        self._mask_name = adapter.layer_signature.attention_mask
        self._flash = "flash" in adapter.stack.attention_implementation
        self._hides = hides
        # one mask serves all layers of a stage that hold equally many keys; the model's mask is kept with it, so that
        # its id stays its own
        self._masks: dict[tuple[int, int, int], tuple[Any, Tensor]] = {}

    def before_layer(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See :meth:`tokenprune.engine.calls.Call.before_layer`."""
        calls = self._layers[layer]
        # this runs in every layer of every step: no call is made that need not be
        others = kwargs if len(args) == 1 else calls.others(args, kwargs)
        mask = others.get(self._mask_name)
        if mask is None and not self._hides:
            return None  # everything is visible
        cache_layer = pruned_layer(calls.cache(others), layer)
        if cache_layer is None or (mask is None and not cache_layer.hides):
            return None
        key = (cache_layer.width, id(mask), id(cache_layer.rows.positions))
        cut = self._masks.get(key)
        hidden = args[0] if args else calls.hidden(args, kwargs)
        if cut is None:
            cut = self._masks[key] = (mask, cache_layer.step_mask(mask, hidden.shape[1], self._flash))
        return (hidden,), {**others, self._mask_name: cut[1]}
