"""What a pruned KV cache goes on with: its method, whichever block the next call is in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenprune.adapters.base import Adapter
from tokenprune.engine import refusals
from tokenprune.engine.cache import check_lengths, pruned_layer
from tokenprune.engine.caches.rows import CacheOwner
from tokenprune.engine.calls import Call, ThreadState
from tokenprune.engine.decode import DecodeStep
from tokenprune.engine.hooks import SharedHooks
from tokenprune.engine.layer_call import LayerCalls
from tokenprune.engine.plan import Plan
from tokenprune.engine.renumber import RenumberedStep, Rotation, smallest_window
from tokenprune.errors import UnsupportedFeatureError


@dataclass(frozen=True)
class OnModel:
    """What all methods in use on one model share.

    Attributes:
        adapter: The model's adapter.
        thread: The calls that run on each thread.
        layers: The calls of each decoder layer.
        layer_hooks: The hooks on the decoder layers.
        loss_hooks: The hook on the loss function.
        reads_logits_to_keep: Whether the model reads ``logits_to_keep``.
    """

    adapter: Adapter
    thread: ThreadState
    layers: Sequence[LayerCalls]
    layer_hooks: SharedHooks
    loss_hooks: SharedHooks
    reads_logits_to_keep: bool


class Continuation(CacheOwner):
    """Owns the caches that one method pruned, and takes their next steps.

    Args:
        on: The model.
        plan: The method's stages.
    """

    def __init__(self, on: OnModel, plan: Plan) -> None:
        super().__init__(on.thread)
        self._on: OnModel | None = on
        self.plan = plan
        last = on.adapter.num_layers - 1
        self.compared = [*(stage.layer for stage in plan.stages), last]  # layers of a cache
        # layers that may differ in the rows that their caches hold
        self._held = range(plan.stages[-1].layer + 1) if plan.cuts_earlier else [s.layer for s in plan.stages]
        self.rotations: dict[int, dict[str, Rotation]] = {}  # of layers with a static cache, for graphs
        self.window = smallest_window(on.adapter, plan.first) if plan.renumbered else None

    def end(self) -> None:
        """See :meth:`CacheOwner.end`. Caches may live on: they hold nothing of the model."""
        super().end()
        self._on = None
        self.rotations.clear()

    def step(self, cache: Any, arguments: Mapping[str, Any]) -> Call:
        """A call that goes on with a pruned cache.

        Args:
            cache: The cache.
            arguments: The arguments of the model's forward, by name.

        Raises:
            UnsupportedFeatureError: It cannot go on exactly.
        """
        on = self._on
        if on is None:  # it ended a moment ago, on another thread
            raise UnsupportedFeatureError(
                "the apply block ended while a call of the model was starting on another thread",
                "wait for all calls, also of other threads, before you end it",
            )
        check_lengths(cache, self.compared)
        refusals.check_features(on.adapter, arguments)
        pruned = (pruned_layer(cache, number) for number in self._held)
        hides = any(layer.hides for layer in pruned if layer is not None)
        if self.plan.renumbered:
            mask = arguments.get("attention_mask")
            return RenumberedStep(on.layers, on.layer_hooks, on.adapter, hides, self.window, mask)
        return DecodeStep(on.layers, on.layer_hooks, on.adapter, hides)


def owner_of(cache: Any, last_layer: int) -> CacheOwner | None:
    """Who pruned a cache; None where it is whole. Whatever was dropped is missing in the last layer, too."""
    layer = pruned_layer(cache, last_layer)
    return None if layer is None else layer.rows.owner
