"""A way to carry a method out before the language model: with another pruner, which reads the vision tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from tokenprune.core.component import Component, FromRegistry, explain
from tokenprune.core.tunable import variants
from tokenprune.errors import ConfigError
from tokenprune.pruners.base import Pruner
from tokenprune.selectors.base import Trial
from tokenprune.selectors.layer_trials import setting_words

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

    @property
    def name(self) -> str:
        """What tables and reasons call the pruner."""
        return self.label or str(pruner_data(self.pruner)["name"])

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
