"""What scorers of a token's states have in common: which states they read, head by head, and where."""

from abc import ABC
from typing import Annotated

from torch import Tensor

from tokenprune.core.tunable import Tunable, TunableLayer
from tokenprune.flops.decoder import Shape
from tokenprune.ops.vision import StateSource
from tokenprune.scorers.base import Scorer
from tokenprune.signals.context import PruneContext
from tokenprune.signals.signal_reader import TowerLayerNumber


class HeadStates(Scorer, ABC):
    """A scorer of a token's states across heads, in the language model or in the vision tower.

    Attributes:
        source: States to score. ``hidden`` is split into as many slices as there are query heads.
        tower_layer: Layer of the vision tower whose states are read, negative from the end: what such a score needs is
            known before the language model starts, and no text is read. None: the states of layer K-1 of the language
            model, where K is the layer before which tokens are dropped.
    """

    source: Annotated[StateSource, Tunable("query", "key", "value", "hidden")] = "query"
    tower_layer: Annotated[TowerLayerNumber | None, TunableLayer(0.0, 1 / 3, 2 / 3, 1.0)] = None

    @property
    def needs(self) -> frozenset[str]:
        """The states to score. Of the vision tower, only values have to be named."""
        if self.tower_layer is None:
            return frozenset({self.source})
        return frozenset({"tower_value"} if self.source == "value" else ())

    def states(self, ctx: PruneContext) -> Tensor:
        """The states to score.

        Args:
            ctx: The stage and its signals.

        Returns:
            ``[batch, n_visual, heads, head_dim]``.
        """
        if self.tower_layer is not None:
            return ctx.vision(self.tower_layer).states(self.source)
        states: Tensor = getattr(ctx, self.source)
        return states.unflatten(-1, (ctx.num_heads, -1)) if self.source == "hidden" else states

    def sizes(self, shape: Shape) -> tuple[int, int]:
        """Heads, and size of a head, of the states that are scored.

        Args:
            shape: The sizes of the model.

        Raises:
            UnsupportedModelError: States of the vision tower are scored, and its sizes are unknown.
        """
        if self.tower_layer is not None:
            tower = shape.known_tower()
            return tower.heads, tower.width // tower.heads if self.source == "hidden" else tower.head_dim
        if self.source == "hidden":
            return shape.heads, shape.width // shape.heads
        return shape.heads if self.source == "query" else shape.kv_heads, shape.head_dim
