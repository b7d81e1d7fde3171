"""A selector that states layers as shares of the decoder's depth."""

from typing import Annotated

from pydantic import Field

from tokenprune.errors import LayerError
from tokenprune.selectors.base import LayerChoice, LayerSelector, SelectorContext


class Relative(LayerSelector):
    """Prune at the given shares of the depth: 0.25 means layer 8 of 32, or layer 7 of 28.

    Attributes:
        depths: Shares of the number of layers, rising. Rounded to the nearest layer; halves are rounded up. Only 0 is
            layer 0, before the language model: in a model of few layers, a small share is layer 1.
    """

    depths: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(min_length=1)

    def known_layers(self, ctx: SelectorContext) -> tuple[int, ...]:
        """See :meth:`tokenprune.selectors.base.LayerSelector.known_layers`."""
        return self.select(ctx).layers

    def select(self, ctx: SelectorContext) -> LayerChoice:
        """See :meth:`tokenprune.selectors.base.LayerSelector.select`."""
        layers = tuple(max(int(depth * ctx.num_layers + 0.5), int(depth > 0)) for depth in self.depths)
        if list(layers) != sorted(set(layers)) or layers[-1] >= ctx.num_layers:
            raise LayerError(
                f"depths {list(self.depths)} of {ctx.num_layers} layers are layers {list(layers)}",
                "give rising shares that name different layers",
            )
        return LayerChoice(layers, f"{', '.join(f'{depth:g}' for depth in self.depths)} of {ctx.num_layers} layers")
