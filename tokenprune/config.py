"""Configurations as data: frozen, typed, read from and written to YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from tokenprune.budgets.base import Budget
from tokenprune.core import plugins
from tokenprune.core.architecture import Architecture
from tokenprune.core.component import Component, FromRegistry, explain
from tokenprune.errors import ConfigError, MissingDataError
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
        if not isinstance(data, Mapping):
            raise ConfigError(
                f"{where or cls.__name__}: expected a mapping,"
                f" got {'nothing' if data is None else type(data).__name__}",
                "write lines of the form key: value",
            )
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise ConfigError(explain(error, where or cls.__name__)) from error

    @classmethod
    def from_yaml(cls, path: str | Path) -> Self:
        """Read a YAML file.

        Raises:
            MissingDataError: The file does not exist or cannot be read.
            ConfigError: The file is not YAML, or not this kind of config.
        """
        return cls.from_dict(read_yaml(path), str(path))

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


#: What happens to the positions of the tokens that are left.
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
        label: A name for tables; it does not affect the method.
        tuned_for: The architecture of the model that a tune found the method for; None for any. On another one the
            method is refused: its layers and values mean nothing there. Other weights of the same architecture, e.g.
            fine-tuned or quantized ones, are taken.
    """

    layers: Annotated[LayerSelector, FromRegistry("selectors")]
    pruner: Annotated[Pruner, FromRegistry("pruners")]
    budget: Annotated[Budget, FromRegistry("budgets")]
    positions: Positions = "original"
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
        """What no tune found is written as before there were tunes: stored definitions stay equal."""
        data: dict[str, Any] = handler(self)
        return {name: value for name, value in data.items() if name != "tuned_for" or value is not None}

    @model_validator(mode="after")
    def _count_is_stated(self) -> Self:
        if self.budget.open_ended(0, 1) and not self.pruner.adaptive:
            raise ValueError(
                f"budget {type(self.budget).__name__} leaves the count to the pruner, and {type(self.pruner).__name__}"
                " takes it from the budget: give a budget that states a number"
            )
        return self


def _is_a_path(output: str) -> str:
    if not output.strip():
        raise ValueError("name a folder for the results")
    return output


#: The folder of a run's results.
OutputPath = Annotated[str, AfterValidator(_is_a_path)]


def as_entries(methods: Any) -> Any:
    """A list of methods in which a name stands for an entry with that name."""
    if not isinstance(methods, list | tuple):
        return methods
    return [{"name": item} if isinstance(item, str) else item for item in methods]


class RunConfig(Config):
    """What a command runs, as a file says it.

    Attributes:
        requires: Distributions that its components come from, each with how to install it. Checked first, so that a run
            says what is missing instead of which names are unknown.
    """

    requires: dict[str, str] = Field(default_factory=dict)

    @field_validator("requires")
    @classmethod
    def _installed(cls, requires: dict[str, str]) -> dict[str, str]:
        """Runs before the fields of subclasses are read: pydantic validates fields in order."""
        for name, how in requires.items():
            plugins.require(name, how)
        return requires


class _Loader(yaml.SafeLoader):
    """YAML in which a key may stand once per mapping."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The node of a mapping.

        Raises:
            yaml.YAMLError: A key stands twice; without this check the last one would win in silence.
        """
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML text.

    Args:
        text: The text.
        where: Its source, for messages.

    Raises:
        ConfigError: The text is not YAML, or a key stands twice in one mapping.
    """
    try:
        data = yaml.load(text, _Loader)
        _check_finite(data)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split()) or "not YAML"
        raise ConfigError(
            f"{where}:{place} is not valid YAML ({problem})", "check indentation, brackets and keys"
        ) from None
    except RecursionError:
        raise ConfigError(f"{where} contains itself, or is nested too deeply", "write it without anchors") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # a date, or a tag, with a wrong value
        raise ConfigError(f"{where} is not valid YAML ({error})", "check its dates and tags, or quote them") from None
    return data


def _check_finite(data: Any) -> None:
    """Raise RecursionError for a structure that contains itself."""
    items = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    for item in items:
        _check_finite(item)


def read_yaml(path: str | Path) -> Any:
    """Parse a YAML file; it raises the errors of :meth:`Config.from_yaml`."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingDataError(f"no such config file: {path}", "check the path") from None
    except IsADirectoryError:
        raise MissingDataError(f"{path} is a folder, not a config file", "give a YAML file") from None
    except UnicodeDecodeError:
        raise MissingDataError(f"{path} is not a text file in UTF-8", "give a YAML file") from None
    except (OSError, ValueError) as error:
        raise MissingDataError(
            f"cannot read config file {str(path)!r} ({error})", "check that it is a readable file"
        ) from None
    return parse_yaml(text, str(path))
