"""Marks a model while a method is applied to it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from tokenprune.errors import BusyModelError

_MARK = "_tokenprune_applied"
# looking for the mark and setting it are one step; the garbage collector may end a dropped run in the middle of it
_LOCK = threading.RLock()


class Reservation:
    """Marks a decoder while a method is applied. A copy of the model carries None in its place.

    Attributes:
        run: Returns the run while its caller holds it; None before there is one, and where nobody holds one.
        shared: What those share who use the run together; None where one caller holds it.
    """

    def __init__(self) -> None:
        self.run: Callable[[], Any] = lambda: None
        self.shared: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> Any:
        return type(None), ()


@contextmanager
def reserved(decoder: nn.Module) -> Iterator[Reservation]:
    """Two methods on one model would corrupt each other: the second is refused.

    Raises:
        BusyModelError: A method is already applied to the model.
    """
    with _LOCK:
        check_free(decoder)
        mark = vars(decoder)[_MARK] = Reservation()
    try:
        yield mark
    finally:
        with _LOCK:
            del vars(decoder)[_MARK]


def reservation(decoder: nn.Module) -> Reservation | None:
    """The mark on a decoder; None where no method is applied to it."""
    mark: Reservation | None = vars(decoder).get(_MARK)
    return mark


def check_free(decoder: nn.Module) -> None:
    """Refuse a model to which a method is applied.

    Raises:
        BusyModelError: A method is already applied to the model.
    """
    mark = reservation(decoder)
    if mark is not None and mark.shared is not None:
        raise BusyModelError(
            "tp.generate is running on this model, on another thread",
            "wait until it has ended, or apply a method once and use its run's using(method) for all calls",
        )
    if mark is not None:
        raise BusyModelError(
            "a method is already applied to this model",
            "use its run's using(method) for calls with another method, or close the run before another apply",
        )
