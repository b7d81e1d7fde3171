"""Configurations as data: frozen, typed, read from and written to YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import ValidationError, model_validator

from tokenprune.budgets.base import Budget
from tokenprune.component import Component, FromRegistry, explain, shorten
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
            raise ConfigError(f"{where or cls.__name__}: expected a mapping, got {type(data).__name__}")
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


class Method(Config):
    """A pruning method: before which layers to prune, which tokens to keep, and how many.

    Attributes:
        layers: Selects the decoder layers before which tokens are dropped.
        pruner: Selects the tokens that survive.
        budget: States how many tokens survive.
        label: A name for tables; it does not affect the method.
    """

    layers: Annotated[LayerSelector, FromRegistry("selectors")]
    pruner: Annotated[Pruner, FromRegistry("pruners")]
    budget: Annotated[Budget, FromRegistry("budgets")]
    label: str | None = None

    @model_validator(mode="after")
    def _count_is_stated(self) -> Self:
        if self.budget.open_ended(0, 1) and not self.pruner.adaptive:
            raise ValueError(
                f"budget {type(self.budget).__name__} leaves the count to the pruner, and {type(self.pruner).__name__}"
                " takes it from the budget: give a budget that states a number"
            )
        return self


def read_yaml(path: str | Path) -> Any:
    """Parse a YAML file; it raises the errors of :meth:`Config.from_yaml`."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingDataError(f"no such config file: {path}", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise MissingDataError(
            f"cannot read config file {path} ({error})", "check that it is a readable file"
        ) from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(f"{path}:{place} is not valid YAML ({problem})", "check indentation and brackets") from None
