"""A way to carry a method out before the language model: with another pruner, which reads the vision tower."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from tokenprune.core.component import Component, FromRegistry, explain
from tokenprune.core.tunable import variants
from tokenprune.errors import ConfigError, LayerError
from tokenprune.pruners.base import Pruner
from tokenprune.selectors.base import Trial
from tokenprune.selectors.layer_trials import setting_words
from tokenprune.signals.signals import INPUT_SIGNALS

#: A pruner as data: a mapping with ``name``.
PRUNER: TypeAdapter[Pruner] = TypeAdapter(Annotated[Pruner, FromRegistry("pruners")])


def pruner_data(pruner: Component) -> dict[str, Any]:
    """A pruner as JSON-ready data, with its registered name."""
    data: dict[str, Any] = PRUNER.dump_python(pruner, mode="json")  # type: ignore[arg-type]
    return data


def load_pruner(data: Mapping[str, Any]) -> Pruner:
    """The pruner that :func:`pruner_data` described.

    Raises:
        ConfigError: There is no such pruner (any more), or it refuses a value.
    """
    try:
        return PRUNER.validate_python(dict(data))
    except ValidationError as error:
        raise ConfigError(
            explain(error, "the pruner of a verdict"), "make the profile again with `tokenprune profile`"
        ) from error


class Way(Component):
    """A pruner that acts before layer 0, where no layer of the language model has run.

    Attributes:
        pruner: The pruner. It can read the vision tower, hidden states and the prompt.
        fields: Paths of its fields whose alternatives are verified, too, e.g. ``scorer.tower_layer``. They are the
            values that the component names as worth trying.
        label: What tables and reasons call the pruner; None for its registered name.
    """

    pruner: Annotated[Pruner, FromRegistry("pruners", described=False)]
    fields: tuple[str, ...] = ()
    label: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _exists_before_layer_0(self) -> Self:
        self.pruner.check((0,))
        missing = self.pruner.at(0).needs - INPUT_SIGNALS
        if missing:
            raise ValueError(
                f"{self.name} reads {', '.join(sorted(missing))} of the layer before layer 0, which does not exist:"
                " name a pruner that reads the vision tower or hidden states"
            )
        return self

    @property
    def name(self) -> str:
        """What tables and reasons call the pruner."""
        return self.label or str(pruner_data(self.pruner)["name"])

    def check_tower(self, tower_layers: int | None) -> None:
        """Refuse layers that the vision tower does not have.

        Args:
            tower_layers: See :meth:`pruners`. Nothing is refused where the tower cannot be read.

        Raises:
            LayerError: The pruner names one.
        """
        if tower_layers is None:
            return
        absent = sorted(layer for layer in self.pruner.vision_layers if not -tower_layers <= layer < tower_layers)
        if absent:
            raise LayerError(
                f"{self.name} of 'before' reads layer {absent[0]} of the vision tower, which has {tower_layers} layers",
                f"use {-tower_layers} to {tower_layers - 1}",
            )

    def pruners(self, tower_layers: int | None) -> list[Pruner]:
        """The pruner and its alternatives, its own values first.

        Args:
            tower_layers: Layers of the model's vision tower; None where it cannot be read.

        Raises:
            ConfigError: A path names no tunable field of the pruner.
        """
        return variants(self.pruner, list(self.fields), tower_layers)

    def trials(self, tower_layers: int | None, standard: bool) -> list[Trial]:
        """The pruner and its alternatives before layer 0.

        Args:
            tower_layers: See :meth:`pruners`.
            standard: Whether the first one is taken unless another is clearly better.
        """
        found = self.pruners(tower_layers)
        words = (", ".join(filter(None, [self.name, setting_words(item, self.fields)])) for item in found)
        return [
            Trial((0,), item, setting, standard and item is found[0])
            for item, setting in zip(found, words, strict=True)
        ]
