"""The options of commands that can share their work among workers."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import yaml

from tokenprune.core.text import one_line
from tokenprune.errors import ConfigError

ExecutorOption = Annotated[
    str | None,
    typer.Option(help="Share the work among workers: local, ray, submitit, or '{name: local, gpus: 2}'."),
]
Workers = Annotated[int | None, typer.Option(help="How many workers. [default: one per GPU of the machine, or 1]")]


def executor_of(text: str | None) -> Any:
    """What an option says of an executor: its name, or a mapping with its fields.

    Args:
        text: A name, or a mapping in YAML; None if the option is not given.

    Raises:
        ConfigError: It is no YAML.
    """
    if text is None:
        return None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--executor {text!r} is no YAML ({one_line(error)})", "write {name: local, gpus: 2}"
        ) from None
