"""Progress bars in notebooks: long calls show one there without an argument."""

import inspect
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from html import escape
from typing import Any, ParamSpec, TypeVar

#: What long calls tell of their progress: (what is done now, steps done, steps in total).
Progress = Callable[[str, int, int], None]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

#: Seconds between two pictures of a bar.
PAUSE = 0.2


def in_notebook() -> bool:
    """Whether the code runs in a kernel of IPython: Jupyter, Colab, the notebooks of an editor."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


@dataclass(frozen=True)
class Bar:
    """One picture of a progress bar.

    Attributes:
        what: What is done now.
        done: Steps done.
        total: Steps in total.
        seconds: Time since the first step was reported.
    """

    what: str
    done: int
    total: int
    seconds: float

    def __repr__(self) -> str:
        return f"{self.what}: {self.done} of {self.total}, {self.seconds:.0f} s"

    def _repr_html_(self) -> str:
        return f'<progress value="{self.done}" max="{self.total}"></progress> {escape(repr(self))}'


class NotebookBar:
    """A callback that shows a bar below the cell. It appears with the first step, and one bar serves the whole call."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._begin = self._last = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show the steps that are done; steps that follow each other too fast to be seen are left out."""
        now = time.monotonic()
        if self._handle is None:
            self._begin = self._last = now
            display: Any = sys.modules["IPython"].display
            self._handle = display.display(Bar(what, done, total, 0.0), display_id=True)
        elif done >= total or now - self._last >= PAUSE:
            self._last = now
            self._handle.update(Bar(what, done, total, now - self._begin))


def progress_in_notebooks(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a function with a parameter ``progress``: where it is None, a notebook shows a bar."""
    signature = inspect.signature(function)

    @wraps(function)
    def shown(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if not in_notebook():
            return function(*args, **kwargs)
        given = signature.bind(*args, **kwargs)
        if given.arguments.get("progress") is None:
            given.arguments["progress"] = NotebookBar()
        return function(*given.args, **given.kwargs)

    return shown
