"""Gives orders to workers, starts workers again that died, and hands out what they report."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tokenprune.errors import ForwardError, TokenPruneError, TokenPruneWarning
from tokenprune.executors.base import Workers
from tokenprune.executors.service import Message

#: Seconds of one wait for messages.
WAIT = 1.0
#: How often an order, or a part of it, is tried.
TRIES = 3


class Work(ABC):
    """Orders that are to be carried out, by whichever worker."""

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether everything is done, or given up."""

    @abstractmethod
    def take(self, workers: int) -> Any | None:
        """The next order, for one of so many workers; None if there is none now: others may still fail."""

    @abstractmethod
    def report(self, order: Any, content: Any) -> None:
        """A part of an order is done."""

    @abstractmethod
    def done(self, order: Any, content: Any) -> None:
        """An order is done."""

    @abstractmethod
    def failed(self, order: Any, error: TokenPruneError, died: bool) -> None:
        """An order failed, or its worker died on it. What is left of it is to be taken again, or given up.

        Raises:
            TokenPruneError: Nothing else needs to be tried.
        """


class Once(Work):
    """One order that one worker carries out.

    Attributes:
        result: Its outcome.
    """

    def __init__(self, order: Any) -> None:
        self._orders, self._tries = [order], 0
        self._done = False
        self.result: Any = None

    @property
    def finished(self) -> bool:
        """See :meth:`Work.finished`."""
        return self._done

    def take(self, workers: int) -> Any | None:
        """See :meth:`Work.take`."""
        return self._orders.pop() if self._orders else None

    def report(self, order: Any, content: Any) -> None:
        """See :meth:`Work.report`."""

    def done(self, order: Any, content: Any) -> None:
        """See :meth:`Work.done`."""
        self._done, self.result = True, content

    def failed(self, order: Any, error: TokenPruneError, died: bool) -> None:
        """See :meth:`Work.failed`."""
        self._tries += 1
        if not died or self._tries == TRIES:
            raise error
        self._orders.append(order)


@dataclass
class _Slot:
    """A worker as the pool knows it: it starts, waits, or has an order."""

    ready: bool = False
    order: Any = None


class Pool:
    """Workers that carry out one :class:`Work` after the other.

    Args:
        workers: The workers; none of them is started yet.
        count: How many are started.
        accept: Called with what a worker says when it is ready; it raises an error if the worker must not be used.
    """

    def __init__(self, workers: Workers, count: int, accept: Callable[[Any], None]) -> None:
        self._workers, self._accept = workers, accept
        self._slots: dict[int, _Slot] = {}
        self._barren = 0  # workers that died one after the other, with nothing done since
        self._most_barren = max(TRIES, 2 * count)
        for number in range(count):
            self._start(number)

    def close(self) -> None:
        """End all workers."""
        self._workers.close()

    def run(self, work: Work) -> Iterator[list[Any]]:
        """Let the workers carry out orders.

        Args:
            work: The orders.

        Yields:
            What the workers reported, as it arrives: all that is there at once.

        Raises:
            TokenPruneError: The work raises it, or no worker can be started.
        """
        while self._unfinished(work):
            reports = self._receive(work)
            if reports:
                yield reports

    def wait(self) -> None:
        """Wait until a worker is ready; errors as for :meth:`run`."""
        nothing = Once(None)
        while not any(slot.ready for slot in self._slots.values()):
            self._receive(nothing)

    def once(self, order: Any, report: Callable[[Any], object]) -> Any:
        """Let one worker carry out an order.

        Args:
            order: The order.
            report: Called with every report.

        Returns:
            The outcome.
        """
        work = Once(order)
        for reports in self.run(work):
            for content in reports:
                report(content)
        return work.result

    def _unfinished(self, work: Work) -> bool:
        """Give orders to the workers that wait; whether anything is to be done still."""
        if work.finished:
            return False
        self._give(work)
        return not work.finished  # it may have had no more to give

    def _give(self, work: Work) -> None:
        for number, slot in self._slots.items():
            if slot.ready and slot.order is None:
                slot.order = work.take(len(self._slots))
                if slot.order is None:
                    return
                self._workers.send(number, slot.order)

    def _receive(self, work: Work) -> list[Any]:
        """Wait for messages, and return the reports among them."""
        reports: list[Any] = []
        for number, message in self._workers.receive(WAIT):
            if number in self._slots:
                self._hear(work, number, message, reports)
        return reports

    def _hear(self, work: Work, number: int, message: Message, reports: list[Any]) -> None:
        slot = self._slots[number]
        if message.kind == "warning":
            warnings.warn(message.content, TokenPruneWarning, stacklevel=2)
        elif message.kind == "report":
            self._barren = 0
            work.report(slot.order, message.content)
            reports.append(message.content)
        elif message.kind == "ready":
            self._welcome(number, message.content)
        elif message.kind == "ended":
            self._ended(work, number, message.content)
        else:
            order, slot.order = slot.order, None
            if message.kind == "done":
                self._barren = 0
                work.done(order, message.content)
            else:
                work.failed(order, message.content, died=False)

    def _start(self, number: int) -> None:
        self._slots[number] = _Slot()
        self._workers.start(number)

    def _welcome(self, number: int, hello: Any) -> None:
        try:
            self._accept(hello)
        except TokenPruneError as error:
            self._workers.stop(number)
            self._remove(number, error)
        else:
            self._slots[number].ready = True

    def _ended(self, work: Work, number: int, reason: str | TokenPruneError) -> None:
        slot = self._slots[number]
        error = reason if isinstance(reason, TokenPruneError) else ForwardError(f"worker {number + 1} {reason}")
        if not slot.ready and error is reason:  # it said why it cannot start: it would say so again
            self._remove(number, error)
            return
        self._barren += 1
        if slot.order is not None:
            work.failed(slot.order, error, died=True)
        if self._barren > self._most_barren:
            raise type(error)(error.what, "workers die before they have done anything; the same command goes on")
        self._start(number)

    def _remove(self, number: int, error: TokenPruneError) -> None:
        """Go on without a worker, as long as there are others."""
        del self._slots[number]
        if not self._slots:
            raise error
        text = f"worker {number + 1} cannot be used ({error}); {len(self._slots)} go on"
        warnings.warn(text, TokenPruneWarning, stacklevel=3)
