"""Configurations as data: frozen, typed, read from and written to YAML."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from tokenprune.budgets.base import Budget
from tokenprune.core.architecture import Architecture
from tokenprune.core.component import Component, FromRegistry, explain
from tokenprune.core.document import Document, read_yaml
from tokenprune.errors import ConfigError
from tokenprune.pruners.base import Pruner
from tokenprune.selectors.base import LayerSelector


class Config(Component):
    """A component that can be read from and written to YAML."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "") -> Self:
        """Make a config from a mapping.

        Args:
            data: The mapping.
            where: The source of the mapping, for messages.

        Raises:
            ConfigError: The mapping is not valid; the message is one line that names the path of every wrong key.
        """
        return cls.from_document(Document(data, where or cls.__name__))

    @classmethod
    def from_document(cls, document: Document) -> Self:
        """Make a config from what a YAML file says; as :meth:`from_dict`, and errors name the lines of the file."""
        data, where = document.data, document.name
        if not isinstance(data, Mapping):
            raise ConfigError(
                f"{where}: expected a mapping, got {'nothing' if data is None else type(data).__name__}",
                "write lines of the form key: value",
            )
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise ConfigError(explain(error, where, document.line)) from error

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a YAML file.

        Raises:
            MissingDataError: The file does not exist or cannot be read.
            ConfigError: The file is not YAML, or not this kind of config; the message names lines of the file.
        """
        return cls.from_document(read_yaml(path))

    def to_yaml(self) -> str:
        """YAML text from which :meth:`from_yaml` makes an equal config."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)


def check_label(label: str) -> str:
    """Refuse a label that tables cannot show.

    Raises:
        ValueError: It is empty, has spaces around it, or holds a line break, a tab or a ``|``.
    """
    if not label.strip():
        raise ValueError("a label needs at least one letter; leave the key out to use the method's name")
    if label != label.strip() or "|" in label or not label.isprintable():
        raise ValueError("a label is one line of a table: no '|', no line break, no spaces around it")
    return label


#: A name for tables.
Label = Annotated[str, AfterValidator(check_label)]


#: Positions of the tokens that are left: their own, or new ones without gaps.
Positions = Literal["original", "renumbered"]


class Method(Config):
    """A pruning method: before which layers to prune, which tokens to keep, and how many.

    Attributes:
        layers: Selects the decoder layers before which tokens are dropped.
        pruner: Selects the tokens that survive.
        budget: States how many tokens survive.
        positions: Whether the tokens that are left keep their ``original`` positions, or are ``renumbered`` without
            gaps, as most of the published code does. Pruned before layer 0 with renumbered positions, the model
            computes what it computes of the shortened prompt. A sample that loses nothing keeps its positions.
        cut_earlier_caches: Whether, after the prefill, the KV caches of the layers before each stage are cut to the
            tokens that the last stage kept, as some published code does. The prompt's logits stay the same; later
            tokens see the kept tokens alone, in every layer, and the cache is as small in every layer as in the last.
        label: A name for tables; it does not affect the method.
        tuned_for: The architecture of the model that a tune found the method for; None for any. On another one the
            method is refused: its layers and values mean nothing there. Other weights of the same architecture, e.g.
            fine-tuned or quantized ones, are taken.
    """

    layers: Annotated[LayerSelector, FromRegistry("selectors")]
    pruner: Annotated[Pruner, FromRegistry("pruners")]
    budget: Annotated[Budget, FromRegistry("budgets")]
    positions: Positions = "original"
    cut_earlier_caches: bool = False
    label: Label | None = None
    tuned_for: Architecture | None = None

    def check_fits(self, given: Architecture) -> None:
        """Check that the method was not tuned for a model of another architecture.

        Args:
            given: The architecture of the model.

        Raises:
            ConfigError: It was; the message names both.
        """
        if self.tuned_for not in (None, given):
            name = "the method" if self.label is None else f"method {self.label!r}"
            raise ConfigError(
                f"{name} was tuned for {self.tuned_for}, and the model is {given}",
                "tune for this model, or remove tuned_for from the method to use it all the same",
            )

    @model_serializer(mode="wrap")
    def _without_nothing(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out fields that say nothing, so that definitions equal those stored before there were such fields."""
        data: dict[str, Any] = handler(self)
        if self.tuned_for is None:
            data.pop("tuned_for", None)
        if not self.cut_earlier_caches:
            data.pop("cut_earlier_caches", None)
        return data

    @model_validator(mode="after")
    def _count_is_stated(self) -> Self:
        if self.budget.open_ended(0, 1) and not self.pruner.adaptive:
            raise ValueError(
                f"budget {type(self.budget).__name__} leaves the count to the pruner, and {type(self.pruner).__name__}"
                " takes it from the budget: give a budget that states a number"
            )
        return self
