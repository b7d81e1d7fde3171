"""What a worker does, whoever starts it: it loads what it needs once, then carries out one order after the other."""

import pickle
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenprune.core.blame import place
from tokenprune.core.forward_errors import device_broken, forward_errors
from tokenprune.core.text import one_line
from tokenprune.errors import ConfigError, ForwardError, TokenPruneError, TokenPruneWarning

#: What a worker tells its driver.
Kind = Literal["ready", "report", "done", "failed", "warning", "ended"]


@dataclass(frozen=True)
class Message:
    """What a driver hears of a worker.

    Attributes:
        kind: ``ready``: the worker waits for its first order. ``report``: a part of an order is done. ``done``: all of
            it. ``failed``: it cannot be done, and the worker waits for the next one. ``warning``: a text for the user.
            ``ended``: the worker is dead.
        content: What the service says (``ready``, ``report``, ``done``), the error (``failed``), the text
            (``warning``), or why (``ended``): the error that the worker ended with, or a text where it died.
    """

    kind: Kind
    content: Any = None


class Service(ABC):
    """The work of one worker. It is made in the worker, and holds what is loaded once, e.g. a model."""

    @abstractmethod
    def hello(self) -> Any:
        """What the driver must know before the worker gets orders: picklable."""

    @abstractmethod
    def handle(self, order: Any, report: Callable[[Any], None]) -> Any:
        """Carry out an order.

        Args:
            order: What to do.
            report: Sends a part of the outcome at once; what was sent is not lost when the worker dies.

        Returns:
            The rest of the outcome: picklable.

        Raises:
            TokenPruneError: It cannot be done.
        """


@dataclass(frozen=True)
class Setup:
    """What an executor starts its workers with: picklable.

    Attributes:
        make: Makes the service inside the worker.
        scratch: A folder for the files of executors whose workers speak through files. It is on a disk that all
            machines see, and need not exist. Whoever makes it removes it.
    """

    make: Callable[[], Service]
    scratch: Path


#: The way out where a worker cannot import what it needs.
IN_A_MODULE = "define components in a module that can be imported, and not in a script, a function or a notebook"


def packed(setup: Setup) -> bytes:
    """A setup as it is sent to workers.

    Raises:
        ConfigError: A part of it cannot be sent.
    """
    try:
        return pickle.dumps(setup)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(f"what workers need cannot be sent to them ({one_line(error)})", IN_A_MODULE) from error


def unpacked(setup: bytes) -> Callable[[], Service]:
    """What makes the service of a setup that was sent.

    Args:
        setup: What :func:`packed` returned.

    Returns:
        A function that raises a ConfigError where this process cannot import what the setup names.
    """

    def make() -> Service:
        try:
            made: Setup = pickle.loads(setup)
        except (AttributeError, ImportError) as error:
            raise ConfigError(f"workers cannot import what they need ({one_line(error)})", IN_A_MODULE) from error
        return made.make()

    return make


def serve(make: Callable[[], Service], orders: Iterable[Any], send: Callable[[Message], None]) -> None:
    """Make a service and let it handle orders, until there are no more.

    Args:
        make: Makes the service.
        orders: The orders; reading one waits for it.
        send: Sends a message to the driver.
    """
    with warnings.catch_warnings():
        _send_warnings(send)
        try:
            with forward_errors():
                service = make()
                hello = service.hello()
        except TokenPruneError as error:
            send(Message("ended", _portable(error)))
            return
        send(Message("ready", hello))
        for order in orders:
            message = _handled(service, order, send)
            send(message)
            if message.kind == "ended":
                return


def _handled(service: Service, order: Any, send: Callable[[Message], None]) -> Message:
    def report(content: Any) -> None:
        send(Message("report", content))

    try:
        return Message("done", service.handle(order, report))
    except TokenPruneError as error:
        broken = device_broken(error)
        traceback.clear_frames(error.__traceback__)  # the tensors of a failed forward
        return Message("ended" if broken else "failed", _portable(error))
    except MemoryError as error:
        return Message("failed", ForwardError(f"the memory is full ({place(error)})", "lower batch_size"))
    except Exception as error:
        where = f"{type(error).__name__}: {one_line(error)}; {place(error)}"
        return Message("ended", ForwardError(f"a worker failed ({where})"))


def _portable(error: TokenPruneError) -> TokenPruneError:
    """The error without its cause, which may hold what cannot be sent."""
    return type(error)(error.what, error.fix)


def _send_warnings(send: Callable[[Message], None]) -> None:
    """Hand our own warnings to the driver, so that the user reads each in one place."""
    show = warnings.showwarning

    def say(message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any) -> None:
        if issubclass(category, TokenPruneWarning):
            send(Message("warning", str(message)))
        else:
            show(message, category, filename, lineno, *rest)

    warnings.simplefilter("always", TokenPruneWarning)
    warnings.showwarning = say  # type: ignore[assignment]
