"""How many workers of which executor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from tokenprune.errors import ConfigError
from tokenprune.executors.base import Executor


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
    def of(cls, executor: Executor | None, number: int | None) -> Self | None:
        """The workers that a user asks for; None where everything runs in this process.

        Args:
            executor: The executor; None for this process.
            number: How many workers; None leaves it to the executor.

        Raises:
            ConfigError: The number is below 1, or there is one without an executor.
        """
        if number is not None and number < 1:
            raise ConfigError(f"{number} workers do nothing", "give 1 or more")
        if executor is None:
            if number is not None:
                raise ConfigError(
                    "workers are started by an executor, and none is given", "give local, ray or submitit"
                )
            return None
        return cls(executor, executor.default_workers() if number is None else number)
