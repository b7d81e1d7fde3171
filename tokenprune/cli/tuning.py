"""What the options of ``tokenprune tune`` stand for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenprune.config import read_yaml
from tokenprune.core.plugins import registry
from tokenprune.errors import ConfigError
from tokenprune.tuning import TuneConfig

#: The question about the pictures of a folder, if the user asks none.
QUESTION = "What does this picture show?"


def tune_model(name: str) -> dict[str, Any]:
    """The model that a name stands for: a registered one, or a checkpoint."""
    return {"name": name} if name in registry("models").names() else {"name": "hf", "checkpoint": name}


def tune_task(data: str, question: str | None) -> dict[str, Any]:
    """The task that a name stands for: a registered one, or the user's own pictures or questions.

    Raises:
        ConfigError: A question was given for a task that has its own.
    """
    if data in registry("tasks").names():
        if question is not None:
            raise ConfigError(f"the task {data!r} has its own questions", "leave --question out")
        return {"name": data}
    if question is None and Path(data).expanduser().is_dir():
        question = QUESTION
    return {"name": "vqa", "data": data, **({"question": question} if question is not None else {})}


def tune_settings(config: Path | None, given: Mapping[str, Any]) -> TuneConfig:
    """The tune of a file with the options in place of what it says, or of the options alone.

    Args:
        config: The file, or None.
        given: The fields that options state.

    Raises:
        ConfigError: Neither states the model, the data or a budget, or something stated is wrong.
        MissingDataError: The file cannot be read.
    """
    data: Any = {} if config is None else read_yaml(config)
    if isinstance(data, Mapping):
        if "budgets" in given:
            data = {name: value for name, value in data.items() if name != "budget"}
        data = {**data, **given}
        for field, options in (
            ("model", "--model"),
            ("task", "--data"),
            ("budgets", "--tokens, --average, --reduction or --time"),
        ):
            if config is None and field not in data:
                raise ConfigError(f"tune: no {field.replace('task', 'data')}", f"give {options}, or a file")
    return TuneConfig.from_dict(data, "tune" if config is None else str(config))
