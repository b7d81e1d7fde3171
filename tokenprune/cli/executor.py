"""The options of commands that can share their work among workers."""

from __future__ import annotations

from typing import Annotated

import typer
import yaml

from tokenprune.config import Config
from tokenprune.core.component import FromRegistry
from tokenprune.core.text import one_line
from tokenprune.errors import ConfigError
from tokenprune.executors.base import Executor

ExecutorOption = Annotated[
    str | None,
    typer.Option(help="Share the work among workers: local, ray, submitit, or '{name: local, gpus: 2}'."),
]
Workers = Annotated[int | None, typer.Option(help="How many workers. [default: one per GPU of the machine, or 1]")]


class _Given(Config):
    executor: Annotated[Executor, FromRegistry("executors")]


def executor_of(text: str | None) -> Executor | None:
    """The executor that an option names, with its fields if there are any.

    Args:
        text: A name, or a mapping in YAML; None if the option is not given.

    Raises:
        ConfigError: It is neither, or a field is wrong.
    """
    if text is None:
        return None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--executor {text!r} is no YAML ({one_line(error)})", "write {name: local, gpus: 2}"
        ) from None
    return _Given.from_dict({"executor": value}, "--executor").executor
