"""The process of a local worker: ``python -m tokenprune.executors.process DESCRIPTOR``."""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from tokenprune.executors.service import Message, serve, unpacked


def main(descriptor: int) -> None:
    """Carry out the orders that arrive at a socket. The first thing that arrives is the setup.

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
            speech.send(message)
        except OSError:
            os._exit(1)

    threading.Thread(target=listen, name="tokenprune-orders", daemon=True).start()
    serve(unpacked(arrived.get()), orders(), send)
    sys.stdout.flush()
    os._exit(0)  # the teardown of a model and of its libraries takes seconds


if __name__ == "__main__":
    main(int(sys.argv[1]))
