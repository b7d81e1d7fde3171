"""Workers as actors of Ray: on this machine, or on the machines of a cluster."""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from pydantic import Field

from tokenprune.authoring import ConfigError, Executor, Message, Setup, Workers, packed, serve, unpacked
from tokenprune_cluster.packages import in_one_line, package


class Ray(Executor):
    """Actors of Ray. Without an address, and where ``RAY_ADDRESS`` names no cluster, Ray is started on this machine.

    Attributes:
        address: The cluster: ``auto`` or ``ray://host:port``; None for the running or a new one.
        gpus: GPUs of one worker; None for one where the cluster has any.
        cpus: Processors of one worker, which are also its threads.
    """

    address: str | None = None
    gpus: float | None = Field(default=None, ge=0)
    cpus: float = Field(default=1, ge=0)

    def open(self, count: int, setup: Setup) -> Workers:
        """See :meth:`Executor.open`.

        Raises:
            ConfigError: The cluster cannot be reached, or has too little for all workers.
        """
        ray = package("ray", "ray")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray 2.60 warns unless it is set
        own = not ray.is_initialized()
        if own:
            try:
                ray.init(address=self.address, log_to_driver=False, logging_level="error")
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ConfigError(
                    f"Ray cannot be used ({in_one_line(error)})", "start a cluster, or leave address out"
                ) from None
        try:
            has = ray.cluster_resources()
            gpus = self.gpus if self.gpus is not None else float(bool(has.get("GPU")))
            for name, each in (("CPU", self.cpus), ("GPU", gpus)):
                if count * each > has.get(name, 0):
                    raise ConfigError(
                        f"{count} workers with {each:g} {name} each need {count * each:g},"
                        f" and Ray has {has.get(name, 0):g}",
                        "ask for fewer workers, or for less for each (gpus, cpus)",
                    )
        except BaseException:
            if own:
                ray.shutdown()
            raise
        return _Actors(ray, own, setup, {"num_gpus": gpus, "num_cpus": self.cpus})


class _Actors(Workers):
    """Args: the package, whether it was started for these workers, their setup, and the resources of each."""

    def __init__(self, ray: Any, own: bool, setup: Setup, resources: dict[str, float]) -> None:
        self._ray, self._own = ray, own
        self._setup, self._resources = packed(setup), resources
        self._path = [path or os.getcwd() for path in sys.path]
        self._actors: dict[int, Any] = {}
        self._waiting: dict[Any, int] = {}  # the call that asks for messages -> the worker

    def start(self, number: int) -> None:
        """See :meth:`Workers.start`."""
        made = self._ray.remote(**self._resources, max_concurrency=2, max_restarts=0)(Actor)
        self._actors[number] = made.remote(self._path, self._setup)
        self._ask(number)

    def send(self, number: int, order: Any) -> None:
        """See :meth:`Workers.send`."""
        self._actors[number].give.remote(pickle.dumps(order))

    def receive(self, seconds: float) -> Sequence[tuple[int, Message]]:
        """See :meth:`Workers.receive`."""
        calls = list(self._waiting)
        ready, _ = self._ray.wait(calls, num_returns=len(calls), timeout=0)
        if not ready:
            ready, _ = self._ray.wait(calls, num_returns=1, timeout=seconds)
        found: list[tuple[int, Message]] = []
        for call in ready:
            number = self._waiting.pop(call)
            try:
                found += [(number, message) for message in pickle.loads(self._ray.get(call))]
            except self._ray.exceptions.RayError as error:
                found.append((number, Message("ended", f"died ({in_one_line(error)[:300]})")))
            if found[-1][1].kind == "ended":
                self.stop(number)
            else:
                self._ask(number)
        return found

    def stop(self, number: int) -> None:
        """See :meth:`Workers.stop`."""
        self._waiting = {call: other for call, other in self._waiting.items() if other != number}
        actor = self._actors.pop(number, None)
        if actor is not None:
            with suppress(Exception):  # it may be dead, or its node may be
                self._ray.kill(actor)

    def close(self) -> None:
        """See :meth:`Workers.close`."""
        for number in list(self._actors):
            self.stop(number)
        if self._own:
            self._ray.shutdown()

    def _ask(self, number: int) -> None:
        self._waiting[self._actors[number].heard.remote()] = number


class Actor:
    """A worker inside Ray. It works on a thread of its own, so that it can be asked for its messages meanwhile.

    Args:
        path: Where the driver finds modules.
        setup: Its pickled setup.
    """

    def __init__(self, path: Sequence[str], setup: bytes) -> None:
        sys.path += [folder for folder in path if folder not in sys.path]
        self._orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=self._serve, args=(setup,), name="tokenprune-worker", daemon=True).start()

    def give(self, order: bytes) -> None:
        """Take an order."""
        self._orders.put(order)

    def heard(self) -> bytes:
        """Wait for messages, and return all that are there."""
        found = [self._messages.get()]
        with suppress(queue.Empty):
            while True:
                found.append(self._messages.get_nowait())
        return pickle.dumps(found)

    def _serve(self, setup: bytes) -> None:
        def orders() -> Iterator[Any]:
            while True:
                yield pickle.loads(self._orders.get())

        try:
            serve(unpacked(setup), orders(), self._messages.put)
        except Exception as error:  # the driver waits for a message
            self._messages.put(Message("ended", f"failed ({type(error).__name__}: {in_one_line(error)})"))
            raise
