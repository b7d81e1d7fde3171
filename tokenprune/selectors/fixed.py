"""A selector that takes its layers from the config."""

from itertools import pairwise

from pydantic import Field, field_validator

from tokenprune.errors import LayerError
from tokenprune.selectors.base import LayerChoice, LayerSelector, SelectorContext


class Fixed(LayerSelector):
    """Prune before the given layers, counted from 0.

    Attributes:
        layers: Layer indices, ascending. Each stage drops tokens before its layer.
    """

    layers: tuple[int, ...] = Field(min_length=1)

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if any(layer < 0 for layer in layers) or any(b <= a for a, b in pairwise(layers)):
            raise ValueError(f"layers must be ascending and >= 0, got {list(layers)}")
        return layers

    def known_layers(self, ctx: SelectorContext) -> tuple[int, ...]:
        """See :meth:`tokenprune.selectors.base.LayerSelector.known_layers`."""
        return self.select(ctx).layers

    def select(self, ctx: SelectorContext) -> LayerChoice:
        """See :meth:`tokenprune.selectors.base.LayerSelector.select`."""
        if self.layers[-1] >= ctx.num_layers:
            raise LayerError(
                f"layer {self.layers[-1]} is out of range: the model has {ctx.num_layers} decoder layers",
                f"use 0 to {ctx.num_layers - 1}",
            )
        return LayerChoice(self.layers, "fixed by the config")
