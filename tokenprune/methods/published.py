"""Settings that a method's authors published for one model: entries of ``published`` in the file of a named method."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator

from tokenprune.config import Config
from tokenprune.core.architecture import Architecture, ModelFit
from tokenprune.errors import ConfigError


class Published(Config, ModelFit):
    """Settings that were published for one model: the differences from the method's own settings.

    An entry that names layers of a stack states the depth of that stack: :class:`tokenprune.core.architecture.ModelFit`
    has the fields for it.

    Attributes:
        model: The name of the model.
        method: Fields of the method that differ, at any depth. A mapping without ``name`` changes fields of the
            component that the method has there, one with ``name`` replaces it. A list of as many items as the method's
            own changes these one by one.
        budgets: The budgets of the published experiments; the first one is used where no budget is given.
        source: Where the settings stand: a repository with commit, file and lines, or a table of the paper.
        note: Anything else to know about them.
    """

    model: str = Field(min_length=1)
    method: dict[str, Any] = Field(default_factory=dict)
    budgets: tuple[dict[str, Any], ...] = ()
    source: str = Field(min_length=1)
    note: str = ""

    @field_validator("method")
    @classmethod
    def _no_budget(cls, method: dict[str, Any]) -> dict[str, Any]:
        for name, place in (("budget", "write it under budgets"), ("label", "remove it")):
            if name in method:
                raise ValueError(f"published settings have no {name!r} here: {place}")
        return method

    @property
    def settings(self) -> dict[str, Any]:
        """The differences from the method's own settings: fields of the method, and ``budgets`` if there are any."""
        return {**self.method, **({"budgets": list(self.budgets)} if self.budgets else {})}

    @property
    def sentence(self) -> str:
        """The model and the source, for reports."""
        return f"settings published for {self.model} ({self.source})"

    def over(self, method: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a method with these settings in place of its own.

        Args:
            method: The fields of a :class:`tokenprune.Method`.
        """
        merged: dict[str, Any] = _overlay(method, self.method)
        return {**merged, "budget": {**self.budgets[0]}} if self.budgets else merged


def _overlay(own: Any, changes: Any) -> Any:
    """A value with changes in it; a mapping with ``name``, a list of another length and plain values replace it."""
    if isinstance(own, Mapping) and isinstance(changes, Mapping) and "name" not in changes:
        return {**own, **{key: _overlay(own.get(key), value) for key, value in changes.items()}}
    if isinstance(own, list) and isinstance(changes, list) and len(own) == len(changes):
        return [_overlay(*pair) for pair in zip(own, changes, strict=True)]
    return changes


def choose(entries: Sequence[Published], model: Any, method: str) -> Published:
    """The settings for a model: of the entry with that name, or of the first one that fits its architecture.

    Args:
        entries: The entries of the method's file.
        model: A name as in :attr:`Published.model` (in any case), an :class:`Architecture`, a transformers model, or
            its config.
        method: The method's name, for messages.

    Raises:
        ConfigError: Nothing is published for this model.
    """
    if isinstance(model, str):
        wanted, found = repr(model), [entry for entry in entries if entry.model.lower() == model.lower()]
    else:
        architecture = model if isinstance(model, Architecture) else Architecture.of(model)
        wanted, found = str(architecture), [entry for entry in entries if entry.fits(architecture)]
    if found:
        return found[0]
    known = ", ".join(f"{entry.model} ({entry.condition})" for entry in entries)
    raise ConfigError(
        f"method {method!r} has no settings that were published for {wanted}",
        (f"it has some for {known}; " if known else "")
        + f"without a model it has its own settings, see `tokenprune show {method}`",
    )
