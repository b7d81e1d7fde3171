"""The contract of an executor: it starts workers, carries orders to them, says when one is dead; which is asked for."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import TypeAdapter, ValidationError

from tokenprune.core.component import Component, FromRegistry, explain
from tokenprune.errors import ConfigError
from tokenprune.executors.service import Message, Setup


class Workers(ABC):
    """The workers of one run, as the driver sees them. They are numbered from 0.

    Messages of one worker arrive in the order in which it sent them, and what it sent before it died arrives before
    ``ended``. A worker whose driver is dead ends itself.
    """

    @abstractmethod
    def start(self, number: int) -> None:
        """Start a worker, or start one again that has ended. It returns at once; ``ready`` or ``ended`` follows.

        Raises:
            TokenPruneError: None can be started.
        """

    @abstractmethod
    def send(self, number: int, order: Any) -> None:
        """Give an order to a worker that waits for one. If it is dead, ``ended`` follows."""

    @abstractmethod
    def receive(self, seconds: float) -> Sequence[tuple[int, Message]]:
        """Wait until there are messages, but no longer than some seconds.

        Returns:
            Number of the worker and its message; all that are there.
        """

    @abstractmethod
    def stop(self, number: int) -> None:
        """End a worker at once, whatever it does. No message of it follows."""

    @abstractmethod
    def close(self) -> None:
        """End all workers at once, and remove what was made for them."""


class Executor(Component, ABC):
    """Where the workers of a long run are: processes of this machine, a cluster, a queue of jobs."""

    def default_workers(self) -> int:
        """How many workers are started if the user does not say it."""
        return 1

    @abstractmethod
    def open(self, count: int, setup: Setup) -> Workers:
        """Get ready to start workers.

        Args:
            count: How many there will be at a time.
            setup: What every worker is started with.

        Raises:
            MissingDataError: A package is not installed.
            TokenPruneError: So many cannot be started here.
        """


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
        try:
            executor = TypeAdapter[Executor](Annotated[Any, FromRegistry("executors")]).validate_python(executor)
        except ValidationError as error:
            raise ConfigError(explain(error, "executor")) from error
        return cls(executor, executor.default_workers() if number is None else number)
