"""The progress of long commands: a bar in a terminal, lines on stderr elsewhere (Slurm, nohup, CI).

The bar appears with the first thing to show, never before an error. Lines are written when a method is shown for the
first time, and at least once a minute, also while nothing is finished.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

#: Long-running functions of the library call it: (description, steps done, steps in total).
Callback = Callable[[str, int, int], None]
#: Seconds between two lines, at most.
EVERY = 60.0


@contextmanager
def progress_bar(console: Console, width: int = 36, transient: bool = False) -> Iterator[Callback]:
    """Show the progress of the block: a bar, or lines where the console is no terminal.

    Args:
        console: Where to draw the bar. It is gone before an exception is printed.
        width: Characters of the bar's description.
        transient: Remove the bar when it is done.

    Yields:
        The callback to hand to the library.
    """
    shown = _bar(console, width, transient) if console.is_terminal or console.is_jupyter else _lines()
    with shown as show:
        yield show


@contextmanager
def _bar(console: Console, width: int, transient: bool) -> Iterator[Callback]:
    text = TextColumn(f"{{task.description:<{width}.{width}}}", markup=False)
    bar = Progress(text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console, transient=transient)
    task: TaskID | None = None

    def show(description: str, done: int, total: int) -> None:
        nonlocal task
        if task is None:
            task = bar.add_task(description, total=total)
            bar.start()
        bar.update(task, description=description, completed=done, total=total)

    try:
        yield show
    finally:
        if task is not None:
            bar.stop()


@contextmanager
def _lines() -> Iterator[Callback]:
    log = Log(lambda line: print(line, file=sys.stderr, flush=True), time.monotonic)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            log.tick()

    watcher = threading.Thread(target=watch, name="tokenprune-progress", daemon=True)
    watcher.start()
    try:
        yield log.show
    finally:
        ended.set()
        watcher.join()


class Log:
    """Lines about the progress of a command.

    Args:
        write: Writes a line.
        clock: Seconds that pass.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._write, self._clock = write, clock
        self._lock = threading.Lock()
        self._start = self._said = clock()
        self._shown: set[str] = set()
        self._step: tuple[str, int, int] | None = None
        self._base = 0, 0.0  # steps done, and when, at the first step of this total

    def show(self, description: str, done: int, total: int) -> None:
        """Take up a step; a description that is new is a line."""
        with self._lock:
            if self._step is None or self._step[2] != total or done < self._step[1]:
                self._base = done, self._clock()
            self._step = description, done, total
            if description not in self._shown:
                self._shown.add(description)
                self._say()

    def tick(self) -> None:
        """Write a line if the last one is a minute old."""
        with self._lock:
            if self._clock() - self._said >= EVERY:
                self._say()

    def _say(self) -> None:
        self._said = self._clock()
        passed = in_words(self._said - self._start)
        if self._step is None:
            self._write(f"after {passed}: no step is done")
            return
        description, done, total = self._step
        self._write(f"after {passed}: {description}: {done} of {total}{self._rate(done, total)}")

    def _rate(self, done: int, total: int) -> str:
        before, since = self._base
        seconds = self._said - since
        if done <= before or seconds <= 0:
            return ""
        rate = (done - before) / seconds
        speed = f"{rate:.3g} a second" if rate >= 1 else f"{60 * rate:.3g} a minute"
        return f", {speed}, about {in_words((total - done) / rate)} left"


def in_words(seconds: float) -> str:
    """A duration in the two units that matter: ``5 s``, ``3 min``, ``2 h 5 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
