"""The progress bar of long commands. It appears with the first thing to show, never before an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

#: Long-running functions of the library call it: (description, steps done, steps in total).
Callback = Callable[[str, int, int], None]


@contextmanager
def progress_bar(console: Console, width: int = 36, transient: bool = False) -> Iterator[Callback]:
    """Show a progress bar for the block. It is drawn at the first call, and gone before an exception is printed.

    Args:
        console: Where to draw.
        width: Characters of the description.
        transient: Remove the bar when it is done.

    Yields:
        The callback to hand to the library.
    """
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
