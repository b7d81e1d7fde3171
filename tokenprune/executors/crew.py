"""How many workers of which executor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import TypeAdapter, ValidationError

from tokenprune.core.component import FromRegistry, explain
from tokenprune.core.plugins import registry
from tokenprune.errors import ConfigError, MissingDataError
from tokenprune.executors.base import Executor

#: Executors that a distribution of ours brings, and the extra of it that installs each.
CLUSTER = {"ray": "ray", "submitit": "slurm"}


@dataclass(frozen=True)
class Crew:
    """The workers of a run.

    Attributes:
        executor: Starts them.
        number: How many there are.
    """

    executor: Executor
    number: int

    @classmethod
    def of(cls, executor: Executor | Mapping[str, Any] | str | None, number: int | None) -> Self | None:
        """The workers that a user asks for; None where everything runs in this process.

        Args:
            executor: The executor, its name, or a mapping with ``name`` and its fields; None for this process.
            number: How many workers; None leaves it to the executor.

        Raises:
            MissingDataError: The executor is one of a distribution of ours that is not installed.
            ConfigError: The number is below 1, or there is one without an executor; or the executor is unknown, or a
                field of it is wrong.
        """
        if number is not None and number < 1:
            raise ConfigError(f"{number} workers do nothing", "give 1 or more")
        if executor is None:
            if number is not None:
                raise ConfigError(
                    "workers are started by an executor, and none is given", "give local, ray or submitit"
                )
            return None
        name = executor.get("name") if isinstance(executor, Mapping) else executor
        if isinstance(name, str) and name in CLUSTER and name not in registry("executors").names():
            raise MissingDataError(
                f"the executor {name!r} is not installed", f"pip install 'tokenprune-cluster[{CLUSTER[name]}]'"
            )
        try:
            executor = TypeAdapter[Executor](Annotated[Any, FromRegistry("executors")]).validate_python(executor)
        except ValidationError as error:
            raise ConfigError(explain(error, "executor")) from error
        return cls(executor, executor.default_workers() if number is None else number)
