"""What is asked of the plugin: by the engine, for all requests, and by a request, for itself."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tokenprune import Method, load_method
from tokenprune.authoring import ConfigError
from tokenprune_vllm.servable import check_servable

#: The key of the settings: in the model's config, and in a request's ``mm_processor_kwargs``.
KEY = "tokenprune"

#: The name that stands for no pruning, in the place of a method.
UNPRUNED = "unpruned"

#: See :class:`tokenprune.Method`.
Positions = Literal["original", "renumbered"]

#: What a request may change: nothing, how many tokens are kept, or the method as well.
Requests = Literal["nothing", "budget", "method"]


class Settings(BaseModel):
    """How pictures and videos are pruned.

    Attributes:
        method: The name of an installed method, or ``unpruned``; or the definition of a method, as in its file.
        ratio: Share of the visual tokens of each picture or video that is kept.
        tokens: Visual tokens of each picture or video that are kept. One of the two, unless the definition
            has a budget.
        positions: Whether kept tokens have their own positions or are renumbered; None for what the method says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str | dict[str, Any]
    ratio: float | None = Field(None, gt=0, le=1)
    tokens: int | None = Field(None, ge=1)
    positions: Positions | None = None

    @model_validator(mode="after")
    def _one_budget(self) -> Settings:
        if self.ratio is not None and self.tokens is not None:
            raise ValueError("give ratio or tokens, not both")
        if self.method == UNPRUNED and (self.ratio, self.tokens, self.positions) != (None, None, None):
            raise ValueError(f"method {UNPRUNED!r} takes no other settings")
        if isinstance(self.method, str) and self.method != UNPRUNED and self.ratio is None and self.tokens is None:
            raise ValueError(f"method {self.method!r} needs a ratio, e.g. 0.25, or a number of tokens")
        return self

    def resolved(self) -> Method | None:
        """The method, checked; None for no pruning.

        Raises:
            TokenPruneError: There is no such method, or it cannot be served; the message says why.
        """
        return None if self.method == UNPRUNED else _resolved(self.model_dump_json())


@lru_cache(maxsize=256)
def _resolved(text: str) -> Method:
    """The method of some settings. Requests repeat few settings, and a method takes some milliseconds to read.

    No more are kept, as requests choose among any number of shares.
    """
    settings = Settings.model_validate_json(text)
    if isinstance(settings.method, str):
        method = load_method(settings.method, **_budget(settings))
        name = settings.method
    else:
        method = Method.from_dict(settings.method)
        name = method.label or "the method"
        if _budget(settings):
            budget = load_method("random", **_budget(settings)).budget
            method = method.model_copy(update={"budget": budget})
    if settings.positions is not None:
        method = method.model_copy(update={"positions": settings.positions})
    check_servable(name, method)
    return method


def _budget(settings: Settings) -> dict[str, Any]:
    given = {"keep_ratio": settings.ratio, "keep_tokens": settings.tokens}
    return {name: value for name, value in given.items() if value is not None}


class EngineSettings(BaseModel):
    """What the engine was started with.

    Attributes:
        default: The settings of requests that say nothing.
        requests: What a request may change.
        methods: The methods that a request may name; None for all that can be served.
        definitions: Methods among these that are not installed, by their names.
        tower: Whether methods may read the vision tower: not where it is divided between devices.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    default: Settings
    requests: Requests = "method"
    methods: tuple[str, ...] | None = None
    definitions: dict[str, dict[str, Any]] = {}
    tower: bool = True

    def check_offered(self) -> None:
        """Check the methods that requests may name, before the first one does.

        Raises:
            TokenPruneError: There is no such method, or it cannot be served.
        """
        for name in self.methods or ():
            if name in self.definitions:
                check_servable(name, Method.from_dict(self.definitions[name]))
            elif name != UNPRUNED:
                check_servable(name, load_method(name, keep_ratio=0.5))

    def of_request(self, asked: object) -> Settings:
        """The settings of a request.

        Args:
            asked: What the request gives under ``tokenprune``; None if it gives nothing.

        Raises:
            ConfigError: It is malformed, or more than a request may change.
        """
        if asked is None:
            return self.default
        if not isinstance(asked, Mapping):
            raise ConfigError(
                f"the settings are {asked!r}", 'give an object, e.g. {"method": "divprune", "ratio": 0.25}'
            )
        changes = dict(asked)
        if self.requests == "nothing":
            raise ConfigError("this server prunes all requests alike", f"leave {KEY} out of the request")
        if "method" not in changes:
            return parsed({**self._without_budget(changes), **changes})
        if self.requests == "budget":
            raise ConfigError("this server lets requests choose ratio or tokens only", "leave method out")
        name = changes["method"]
        if not isinstance(name, str) or is_file_name(name):
            raise ConfigError("a request names an installed method", "give its name as a text")
        if self.methods is not None and name not in self.methods:
            raise ConfigError(f"this server does not serve method {name!r}", f"use {', '.join(self.methods)}")
        return parsed({**changes, "method": self.definitions.get(name, name)})

    def _without_budget(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The default settings, without a budget that a request replaces."""
        own = self.default.model_dump(exclude_none=True)
        if {"ratio", "tokens"} & changes.keys():
            own = {name: value for name, value in own.items() if name not in ("ratio", "tokens")}
        return own


def is_file_name(method: str) -> bool:
    """Whether a text names a method's file and not a named method."""
    return method.endswith((".yaml", ".yml"))


def asked_by(keywords: Mapping[str, object]) -> object:
    """What a request gives under our key; None if it gives nothing.

    Raises:
        ConfigError: It has the key misspelt: vLLM passes over what it does not know.
    """
    if KEY not in keywords and (close := get_close_matches(KEY, keywords, n=1)):
        raise ConfigError(f"mm_processor_kwargs has {close[0]!r}", f"did you mean {KEY!r}?")
    return keywords.get(KEY)


def parsed(data: Mapping[str, Any]) -> Settings:
    """Settings from plain data.

    Raises:
        ConfigError: They are malformed; the message names the fields.
    """
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_first(error), "give method, ratio or tokens, and positions") from None


def engine_settings(data: object) -> EngineSettings:
    """The settings in a model's config.

    Raises:
        ConfigError: There are none, or they are malformed.
    """
    if data is None:
        raise ConfigError(f"the model's config has no {KEY!r}", "pass hf_overrides=tokenprune_vllm.overrides(...)")
    try:
        settings = EngineSettings.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_first(error), "pass hf_overrides=tokenprune_vllm.overrides(...)") from None
    return settings


def method_data(method: str | Path) -> str | dict[str, Any]:
    """A name as it is; the method of a YAML file (a method's own, or the ``tuned.yaml`` of a tune) as data.

    A definition without a label gets the file's name.

    Raises:
        TokenPruneError: The file holds no method.
    """
    if isinstance(method, str) and not is_file_name(method):
        return method
    data: dict[str, Any] = load_method(method).model_dump(mode="json", exclude_none=True)
    return {"label": Path(method).stem, **data}


def _first(error: ValidationError) -> str:
    """The first problem in one line."""
    found = error.errors()[0]
    where = ".".join(str(part) for part in found["loc"] if part != "default")
    return f"{where + ': ' if where else ''}{found['msg'].removeprefix('Value error, ')}"
