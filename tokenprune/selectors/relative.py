"""Layers stated as a share of the decoder's depth."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tokenprune.errors import LayerError
from tokenprune.selectors.base import LayerChoice, LayerSelector, ModelProfile


class Relative(LayerSelector):
    """Prune at shares of the depth: 0.25 of 32 layers is layer 8, of 28 layers it is layer 7.

    Attributes:
        depths: Shares of the number of layers, rising; rounded to the nearest layer (a half to the later one).
    """

    depths: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(min_length=1)

    def select(self, profile: ModelProfile) -> LayerChoice:
        """See :meth:`tokenprune.selectors.base.LayerSelector.select`."""
        layers = tuple(int(depth * profile.num_layers + 0.5) for depth in self.depths)
        if list(layers) != sorted(set(layers)) or layers[-1] >= profile.num_layers:
            raise LayerError(
                f"depths {list(self.depths)} of {profile.num_layers} layers are layers {list(layers)}",
                "give rising shares that name different layers",
            )
        return LayerChoice(layers, f"{', '.join(f'{depth:g}' for depth in self.depths)} of {profile.num_layers} layers")
