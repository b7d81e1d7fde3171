"""Workers that are no processes, and drivers that are.

What is said between such workers and the driver is pickled, as it is between processes.
"""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenprune.executors.base import Executor, Workers
from tokenprune.executors.service import Message, Service, Setup, packed, serve, unpacked


class Threads(Executor):
    """Each order is carried out when messages are received. Workers die when told to."""

    dies: tuple[int, ...] = ()  # the messages, counted over all workers, in place of which a worker dies

    def open(self, count: int, setup: Setup) -> Workers:
        return Inline(setup, set(self.dies))


class Inline(Workers):
    def __init__(self, setup: Setup, dies: set[int]) -> None:
        self.setup, self.dies = packed(setup), dies
        self.services: dict[int, Service] = {}
        self.orders: dict[int, list[bytes]] = {}
        self.count = 0

    def start(self, number: int) -> None:
        self.orders[number] = []
        self.services.pop(number, None)

    def send(self, number: int, order: Any) -> None:
        self.orders[number].append(pickle.dumps(order))

    def receive(self, seconds: float) -> Sequence[tuple[int, Message]]:
        numbers = sorted(self.orders, reverse=True)  # the last one first, so that the order is not that of one process
        for number in numbers:
            if number not in self.services:
                self.services[number] = service = unpacked(self.setup)()
                return [(number, copied(Message("ready", service.hello())))]
        for number in numbers:
            if self.orders[number]:
                return self.carried_out(number, pickle.loads(self.orders[number].pop()))
        raise AssertionError("nobody has anything to do")

    def carried_out(self, number: int, order: Any) -> list[tuple[int, Message]]:
        service = self.services[number]
        found: list[tuple[int, Message]] = []

        def send(message: Message) -> None:
            self.count += 1
            if self.count in self.dies:
                raise KeyboardInterrupt
            found.append((number, copied(message)))

        made = iter([order])
        try:
            serve(lambda: service, made, lambda message: None if message.kind == "ready" else send(message))
        except KeyboardInterrupt:
            self.stop(number)
            found.append((number, Message("ended", "was killed by the test")))
        return found

    def stop(self, number: int) -> None:
        self.orders.pop(number, None)

    def close(self) -> None:
        self.orders.clear()


def copied(message: Message) -> Message:
    found: Message = pickle.loads(pickle.dumps(message))
    return found


@contextmanager
def driver(code: str, processes: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs code, which may name ``toy``, ``deadly`` and ``Local``, with errors as the command line has.

    Args:
        code: Lines of Python.
        processes: The folder in which its workers note themselves; it is made.
    """
    head = (
        "from tests.support import toy, deadly\n"
        "from tokenprune.executors.local import Local\n"
        "from tokenprune.cli.failures import reported\n"
        "with reported():\n"
    )
    processes.mkdir(exist_ok=True)
    # a job in the background would ignore Ctrl-C
    process = subprocess.Popen(
        [sys.executable, "-c", head + "".join(f"    {line}\n" for line in code.splitlines())],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(true: Callable[[], Any], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.05)


def alive(processes: Path) -> list[int]:
    """Workers that live."""
    found = []
    for path in processes.iterdir():
        state = Path(f"/proc/{path.name}/stat")
        if state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
            found.append(int(path.name))
    return found
