"""Ctrl-C and SIGTERM: one line at once, then the command stops; a second one ends it there and then.

A handler of Python runs between two steps of the main thread, which a long operation of torch delays. The line must not
wait for that: the system writes the number of a signal into a socket, and a thread that reads it prints the line.

Code that the exception meets may swallow it: pydantic drops what is raised while it writes a nested model. The thread
sends the signal again until the block has been left; the handler raises only where no exception is on its way.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

#: The signals, and what users call them.
SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
AGAIN = "the same command goes on"
#: Seconds after which a signal is sent again while the block goes on.
AGAIN_AFTER = 0.5


@contextmanager
def stoppable(kept: Callable[[], str]) -> Iterator[None]:
    """Stop what runs in the block at the first Ctrl-C or SIGTERM, and end the process at the second.

    After the first the block is left as by any exception, so that files and locks are closed. Then the process ends,
    with the status 130 or 143: the teardown of a model and of its libraries would take seconds.

    Blocks may be nested: the inner one says what is kept. Only the main thread of a process gets signals; in another
    one the block runs as it is.

    Args:
        kept: Says in a few words what is kept, and what the same command does then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopped: list[int] = []
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    listener = _Listener(ours, kept)

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        if not listener.left.is_set() and not _on_its_way():
            raise KeyboardInterrupt

    heard = [
        number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN
    ]  # not by jobs in the background
    previous = {number: signal.signal(number, stop) for number in heard}
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    listener.start()
    try:
        yield
    finally:
        listener.left.set()
        if stopped:
            listener.said.wait(timeout=10)  # the line, though the block was left at once
            sys.stdout.flush()
            os._exit(128 + stopped[0])
        signal.set_wakeup_fd(wakeup)
        for number, handler in previous.items():
            signal.signal(number, handler)
        theirs.close()  # the listener ends
        listener.join(timeout=1)
        ours.close()


class _Listener(threading.Thread):
    """Prints the line at the first signal, sends it again while the block goes on, and ends the process at the second.

    Attributes:
        said: Set when the line is printed.
        left: To be set when the block has been left.
    """

    def __init__(self, signals: socket.socket, kept: Callable[[], str]) -> None:
        super().__init__(name="tokenprune-signals", daemon=True)
        self._signals, self._kept = signals, kept
        self.said, self.left = threading.Event(), threading.Event()
        self._sent = 0  # signals of our own that have not been read yet

    def run(self) -> None:
        first = self._next()
        if first is None:
            return
        _print(f"{SIGNALS[first]}: stopping; {self._kept()} ({SIGNALS[first]} again ends at once)")
        self.said.set()
        self._signals.settimeout(AGAIN_AFTER)
        while True:
            try:
                second = self._next()
            except TimeoutError:
                self._send(first)
                continue
            if second is None:
                return
            if self._sent:
                self._sent -= 1
                continue
            _print("ended")
            os._exit(128 + second)

    def _send(self, number: signal.Signals) -> None:
        """Send a signal to the main thread once more, unless the block has been left or the last one is unread."""
        if self._sent or self.left.is_set():
            return
        self._sent += 1
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(threading.main_thread().ident or 0, number)  # ends a sleep, too
        else:
            signal.raise_signal(number)

    def _next(self) -> Any:
        """The next of the signals; None when the block has ended. Others, e.g. of a window's size, are not ours."""
        while True:
            read = self._signals.recv(1)
            if not read:
                return None
            if read[0] in SIGNALS:
                return signal.Signals(read[0])


def _on_its_way() -> bool:
    """Whether the interrupted code runs because of the exception: it cleans up, and must not be stopped."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _print(text: str) -> None:
    """Write a line to stderr, past whatever lock the main thread holds on it; a progress bar's line ends first."""
    start = "\n" if sys.stderr.isatty() else ""
    os.write(2, f"{start}{text}\n".encode(errors="backslashreplace"))


def nothing_kept() -> str:
    """What is kept of a command that writes when it is done."""
    return "nothing is kept"


def kept_in(folder: str | Path) -> Callable[[], str]:
    """What is kept of a run that writes into a folder batch by batch."""

    def words() -> str:
        count = _rows(Path(folder) / "samples.jsonl")
        count += sum(map(_rows, Path(folder).glob("tuned/**/samples.jsonl")))  # tunes of an experiment
        if not count:
            return f"nothing has been written to {folder} yet; {AGAIN}"
        return f"{count} rows are kept in {folder}; {AGAIN}"

    return words


def _rows(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    except OSError:
        return 0
