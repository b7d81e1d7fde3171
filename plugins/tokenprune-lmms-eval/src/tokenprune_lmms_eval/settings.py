"""What ``--model_args`` says: the model, the method and its budget, and how samples are asked."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tokenprune import Method, load_method
from tokenprune.authoring import Budget, Component, ConfigError, FromRegistry, ModelSpec, Sample, Task, registry

#: Names that stand in the place of a method: no pruning, and smaller pictures with as many tokens as a budget leaves.
UNPRUNED, DOWNSAMPLED = "unpruned", "downsampled"
#: Words that state a budget, as ``tokenprune.load_method`` has them.
BUDGETS = ("average_tokens", "average_ratio", "keep_tokens", "keep_ratio", "flops_reduction")
#: Numbers without the word for what they count; ``load_method`` says which words there are.
UNCLEAR = ("tokens", "ratio", "percent", "layer_average")
#: The question about calibration pictures without one.
QUESTION = "What does this picture show?"


class Settings(BaseModel):
    """The arguments that are not those of the model itself.

    Attributes:
        pretrained: A checkpoint: a folder, or a name on the hub.
        model: A model that a plugin of tokenprune brings, by its name; in place of ``pretrained``.
        method: The name of an installed method, the YAML file of one (also the ``tuned.yaml`` of a tune), ``unpruned``
            or ``downsampled``.
        published: The settings that the method's authors published for this model, or for the model of this name.
        average_tokens: Budget: visual tokens, averaged over all layers.
        average_ratio: Budget: share of the visual tokens, averaged over all layers.
        keep_tokens: Budget: visual tokens kept after the last stage.
        keep_ratio: Budget: share of the visual tokens kept after the last stage.
        flops_reduction: Budget: reduction of the prefill's FLOPs in percent.
        budget: Any other budget as a mapping with its name.
        positions: ``original`` or ``renumbered``; None for what the method says.
        seed: Another seed for methods that use random numbers.
        calibration: What the layer selector measures the model on: a folder of pictures, a file or dataset of questions
            as ``tokenprune tune --data`` takes it, or the name of a task of tokenprune.
        calibration_samples: Samples of it, each of another picture.
        frames: Frames that are taken from a video, at even distances.
        max_new_tokens: Tokens of an answer at most, for tasks that do not say it.
        likelihood: Whether the value of a choice is the sum over its tokens, or their mean.
        interleaved: What happens to a prompt with text before or between its pictures: it is refused, or its pictures
            are shown first (``media-first``).
        ignore: Generation settings of tasks that are passed over.
        errors: A sample that fails ends the run (``stop``), or is named in log and report and answered with nothing
            (``name``).
        batch_size: Samples that are answered together.
        report: The file of the report; by default it is beside lmms-eval's results.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    pretrained: str | None = None
    model: str | None = None
    method: str
    published: bool | str = False
    average_tokens: int | None = None
    average_ratio: float | None = None
    keep_tokens: int | None = None
    keep_ratio: float | None = None
    flops_reduction: float | None = None
    budget: dict[str, Any] | None = None
    positions: Literal["original", "renumbered"] | None = None
    seed: int | None = None
    calibration: str | None = None
    calibration_samples: int = Field(32, ge=1)
    frames: int = Field(8, ge=1)
    max_new_tokens: int = Field(256, ge=1)
    likelihood: Literal["sum", "mean"] = "sum"
    interleaved: Literal["refuse", "media-first"] = "refuse"
    ignore: tuple[str, ...] = ()
    errors: Literal["stop", "name"] = "stop"
    batch_size: int = Field(1, ge=1, strict=False)
    report: str | None = None

    @field_validator("ignore", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _clear(self) -> Settings:
        given = self.stated
        if len(given) > 1:
            raise ValueError(f"several budgets ({', '.join(given)}): give one")
        alone = [name for name in ("published", "positions", "seed", "calibration") if getattr(self, name)]
        if self.method == UNPRUNED and (given or alone):
            raise ValueError(f"method=unpruned prunes nothing: leave out {', '.join([*given, *alone])}")
        if self.method == DOWNSAMPLED and (alone or not given):
            why = f"leave out {', '.join(alone)}" if alone else f"give a budget: one of {', '.join(BUDGETS)}"
            raise ValueError(f"method=downsampled shows smaller pictures: {why}")
        return self

    @property
    def stated(self) -> list[str]:
        """The names of the arguments that state a budget."""
        return [name for name in (*BUDGETS, "budget") if getattr(self, name) is not None]


@dataclass(frozen=True)
class Arguments:
    """All of ``--model_args``, checked.

    Attributes:
        settings: Those that are ours.
        spec: The model.
        given: Everything as it was given, for the report.
    """

    settings: Settings
    spec: ModelSpec
    given: dict[str, Any]

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Arguments:
        """Read the arguments.

        Args:
            given: Names and values; None stands for what was not given.

        Raises:
            ConfigError: Some are unknown, missing or wrong; one line says which, and what is allowed.
            UnknownNameError: There is no model of the name.
        """
        known = {name: _value(value) for name, value in given.items() if value is not None}
        if str(known.get("batch_size", 1)).startswith("auto"):
            raise ConfigError(
                "batch_size=auto is not supported", "give a number: results of batches differ by rounding"
            )
        if "method" not in known:
            raise ConfigError("model_args: no method", "give method=NAME, a YAML file, or method=unpruned")
        unclear = {name: known[name] for name in UNCLEAR if name in known}
        if unclear:
            name, value = next(iter(unclear.items()))
            if name == "layer_average":
                raise ConfigError(f"layer_average={value!r} is the name of a budget", _budget_words())
            load_method("random", **{name: value})  # says which words it may stand for
        if ("pretrained" in known) == ("model" in known):
            raise ConfigError("model_args: which model?", "give pretrained (a checkpoint) or model (one of a plugin)")
        name = "hf" if "model" not in known else str(known["model"])
        fields = [field for field in registry("models").get(name).model_fields if field != "checkpoint"]
        _check_names(known, [*Settings.model_fields, *fields])
        own = {key: value for key, value in known.items() if key in Settings.model_fields}
        settings = _settings(own)
        return cls(settings, _spec(name, settings, {key: known[key] for key in known if key in fields}), dict(known))

    def method(self) -> tuple[Method | None, Budget | None]:
        """The method, and without one the budget of smaller pictures; both None for the unpruned model.

        Raises:
            TokenPruneError: There is no such method, its budget is wrong, or nothing is published for the model.
        """
        settings = self.settings
        if settings.method == UNPRUNED:
            return None, None
        stated = {name: getattr(settings, name) for name in settings.stated if name != "budget"}
        if settings.budget is not None:
            if "name" not in settings.budget:
                raise ConfigError(
                    f"budget={settings.budget} has no name", "write budget={name: keep_ratio, ratio: 0.5}"
                )
            stated = dict(settings.budget)
            stated["budget"] = stated.pop("name")
        if settings.method == DOWNSAMPLED:
            return None, load_method("random", **stated).budget
        wanted: Any = settings.published or None
        method = load_method(settings.method, model=self.spec.read_config() if wanted is True else wanted, **stated)
        if settings.positions is not None:
            method = method.model_copy(update={"positions": settings.positions})
        return (method if settings.seed is None else reseeded(method, settings.seed)), None

    def calibration(self) -> Sequence[Sample]:
        """The samples on which layer selectors measure the model; empty if none are asked for.

        Raises:
            TokenPruneError: The data cannot be read.
        """
        data = self.settings.calibration
        if data is None:
            return ()
        entry: dict[str, Any] = {"name": data}
        if data not in registry("tasks").names():
            entry = {"name": "vqa", "data": data}
            if Path(data).expanduser().is_dir():
                entry["question"] = QUESTION
        task: Task = _built("tasks", entry, "calibration")
        return task.calibration(self.settings.calibration_samples)


def reseeded(method: Method, seed: int) -> Method:
    """The method with another seed in every component that has one.

    Raises:
        ConfigError: None has one.
    """
    changed, count = _reseed(method, seed)
    if not count:
        raise ConfigError(f"seed={seed}: method {method.label!r} uses no random numbers", "leave seed out")
    made: Method = changed
    return made


def _reseed(value: Any, seed: int) -> tuple[Any, int]:
    """A component, or several, with another seed; and how many seeds there are."""
    if isinstance(value, tuple) and value:
        items, counts = zip(*(_reseed(item, seed) for item in value), strict=True)
        return items, sum(counts)
    if not isinstance(value, Component):
        return value, 0
    updates: dict[str, Any] = {}
    total = 0
    for name in type(value).model_fields:
        updates[name], count = (seed, 1) if name == "seed" else _reseed(getattr(value, name), seed)
        total += count
    return value.model_copy(update=updates), total


def _value(value: Any) -> Any:
    """A value of the command line: mappings and lists in brackets are YAML, and so JSON."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"{value!r} is not understood ({' '.join(str(error).split())})", "write it as JSON"
            ) from None
    return value


def _check_names(given: Mapping[str, Any], allowed: Sequence[str]) -> None:
    for name in given:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"model_args: unknown name {name!r}", f"{hint}allowed are {', '.join(sorted(allowed))}")


def _settings(own: Mapping[str, Any]) -> Settings:
    texts = ("pretrained", "model", "method", "calibration", "report")
    # lmms-eval reads a text of figures as a number
    own = {name: str(value) if name in texts and isinstance(value, int) else value for name, value in own.items()}
    try:
        return Settings.model_validate(own)
    except ValidationError as error:
        raise _explained(error, "model_args") from None


def _spec(name: str, settings: Settings, fields: dict[str, Any]) -> ModelSpec:
    if "generation" in fields:
        raise ConfigError(
            "generation belongs to experiments", "here generation_kwargs of tasks and --gen_kwargs say how to answer"
        )
    entry: dict[str, Any] = {"name": name, **fields}
    if settings.pretrained is not None:
        entry["checkpoint"] = settings.pretrained
        entry.setdefault("instruction", "")  # tasks say themselves how to answer
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            entry["device"] = _own_device(entry)
    made: ModelSpec = _built("models", entry, "model_args")
    return made


def _built(kind: str, entry: Mapping[str, Any], where: str) -> Any:
    """A component from its name and fields."""
    try:
        return FromRegistry(kind).build(entry)
    except ValidationError as error:
        raise _explained(error, where) from None
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _own_device(entry: Mapping[str, Any]) -> str:
    """The device of this process where several share an evaluation."""
    import torch

    if "device_map" in entry:
        raise ConfigError("device_map with several processes", "start one process, or leave device_map out")
    given = str(entry.get("device", "auto"))
    if given in ("auto", "cuda"):
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    return given


def _budget_words() -> str:
    return f"give one of {', '.join(BUDGETS)}, or budget={{name: layer_average, tokens: 128}}"


def _explained(error: ValidationError, where: str) -> ConfigError:
    """All problems of a pydantic error on one line."""
    problems = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        problems.append(f"{path}: {message}, got {item['input']!r}" if path else message)
    return ConfigError(f"{where}: {'; '.join(problems)}"[:600])
