"""The contract of an executor: it starts workers, carries orders to them, and says when one is dead."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from tokenprune.core.component import Component
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
