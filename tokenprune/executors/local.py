"""Workers as processes of this machine, each with GPUs, or a share of the processor, of its own."""

import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import IO, Any

import torch
from pydantic import Field

from tokenprune.core.text import one_line
from tokenprune.errors import ConfigError, UnsupportedFeatureError
from tokenprune.executors.base import Executor, Workers
from tokenprune.executors.service import Message, Setup, packed, serve, unpacked

#: Variables that say how many threads a process takes.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
#: Messages of one worker that are read before those of the others.
MOST_MESSAGES = 64
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class Local(Executor):
    """Processes of this machine. Where it has GPUs, every worker gets some of them to itself.

    Attributes:
        gpus: GPUs of one worker, where the machine has any; more than one for a model with a ``device_map``, 0 to hide
            them.
    """

    gpus: int = Field(default=1, ge=0)

    def default_workers(self) -> int:
        """One for every GPU, or group of GPUs; one on a machine without."""
        return max(1, len(visible_gpus()) // max(1, self.gpus))

    def open(self, count: int, setup: Setup) -> Workers:
        """See :meth:`Executor.open`.

        Raises:
            ConfigError: There are too few GPUs.
            UnsupportedFeatureError: This system is Windows.
        """
        if os.name == "nt":
            raise UnsupportedFeatureError("the executor local needs Linux or macOS", "use ray, or no executor")
        found = visible_gpus()
        if found and count * self.gpus > len(found):
            raise ConfigError(
                f"{count} workers with {self.gpus} GPUs each need {count * self.gpus}, and {len(found)} are visible",
                f"ask for at most {len(found) // self.gpus} workers",
            )
        return _Processes(count, setup, self.gpus if found else None, found)


def visible_gpus() -> list[str]:
    """The names of the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` has them."""
    given = os.environ.get(_VISIBLE)
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(torch.cuda.device_count())]


@dataclass
class _Process:
    """A worker.

    Attributes:
        process: Its process.
        speech: Our end of the connection.
        log: What it writes to stdout and stderr.
    """

    process: subprocess.Popen[bytes]
    speech: Connection
    log: IO[bytes]


class _Processes(Workers):
    """Args: the number of workers, their setup, GPUs per worker (None: a machine without), the names of all GPUs."""

    def __init__(self, count: int, setup: Setup, gpus: int | None, names: Sequence[str]) -> None:
        self._setup = packed(setup)
        self._count, self._gpus, self._names = count, gpus, names
        self._running: dict[int, _Process] = {}

    def start(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        log = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the worker lives
        with theirs:
            process = subprocess.Popen(
                # -P: a file of the user's in the working folder is no module
                [sys.executable, "-P", "-m", "tokenprune.executors.local", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=self._environment(number),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the driver, which ends the workers
            )
        worker = _Process(process, Connection(ours.detach()), log)
        self._running[number] = worker
        self._write(worker, self._setup)

    def send(self, number: int, order: Any) -> None:
        if number in self._running:
            self._write(self._running[number], pickle.dumps(order))

    def receive(self, seconds: float) -> Sequence[tuple[int, Message]]:
        numbers = {worker.speech: number for number, worker in self._running.items()}
        found: list[tuple[int, Message]] = []
        for speech in connection.wait(list(numbers), seconds):
            assert isinstance(speech, Connection)
            found += self._heard(numbers[speech], speech)
        return found

    def _heard(self, number: int, speech: Connection) -> list[tuple[int, Message]]:
        """All messages of a worker that are there: what is read together is written to the disk at once."""
        found: list[tuple[int, Message]] = []
        try:
            while not found or (len(found) < MOST_MESSAGES and speech.poll()):
                found.append((number, pickle.loads(speech.recv_bytes())))
                if found[-1][1].kind == "ended":
                    self.stop(number)
                    break
        except (EOFError, OSError):
            found.append((number, Message("ended", self._why(number))))
        return found

    def stop(self, number: int) -> None:
        worker = self._running.pop(number, None)
        if worker is not None:
            with suppress(ProcessLookupError):
                os.killpg(worker.process.pid, signal.SIGKILL)  # also what it has started
            worker.process.wait()
            worker.speech.close()
            worker.log.close()

    def close(self) -> None:
        for number in list(self._running):
            self.stop(number)

    @staticmethod
    def _write(worker: _Process, data: bytes) -> None:
        with suppress(OSError):  # it is dead: the next read says so
            worker.speech.send_bytes(data)

    def _why(self, number: int) -> str:
        """Why a worker is dead, in words; it is removed."""
        worker = self._running[number]
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(timeout=10)  # the connection is closed a moment before the process has ended
        code = worker.process.returncode
        worker.log.seek(max(0, worker.log.seek(0, os.SEEK_END) - 2000))
        last = worker.log.read().decode(errors="replace").strip().splitlines()
        self.stop(number)
        if code is not None and code < 0:
            what = f"was killed by {signal.Signals(-code).name}"
        else:
            what = f"ended with status {code}"
        return f"{what} ({one_line(last[-1])[:300]})" if last else what

    def _environment(self, number: int) -> dict[str, str]:
        """The environment of a worker: it finds the same modules, and has GPUs and threads of its own."""
        changes = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        if self._gpus is not None:
            mine = self._names[number * self._gpus : (number + 1) * self._gpus]
            changes[_VISIBLE] = ",".join(mine)
        threads = max(1, _cores() // self._count)
        changes |= {name: str(threads) for name in THREADS if name not in os.environ}
        return {**os.environ, **changes}


def _cores() -> int:
    """Processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def main(descriptor: int) -> None:
    """The process of a worker: carry out the orders that arrive at a socket. The first thing that arrives is the setup.

    The process ends at once when the other end of the socket is closed, whatever it does then: its driver is dead.
    """
    speech = Connection(descriptor)
    arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                arrived.put(speech.recv_bytes())
        except (EOFError, OSError):
            os._exit(1)

    def orders() -> Iterator[Any]:
        while True:
            yield pickle.loads(arrived.get())

    def send(message: Message) -> None:
        try:
            speech.send_bytes(pickle.dumps(message))  # torch's own way of sending shares tensors in files
        except OSError:
            os._exit(1)

    threading.Thread(target=listen, name="tokenprune-orders", daemon=True).start()
    serve(unpacked(arrived.get()), orders(), send)
    sys.stdout.flush()
    os._exit(0)  # the teardown of a model and of its libraries takes seconds


if __name__ == "__main__":
    main(int(sys.argv[1]))
