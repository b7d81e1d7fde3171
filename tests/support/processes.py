"""Processes that a test starts and kills: forked from one that has imported the toys, so that they start at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.tuning.planted"])


@dataclass(frozen=True)
class Job:
    """A process at work."""

    process: Any
    steps: Connection

    def step(self) -> tuple[str, int, int]:
        """Wait for the next progress that it reports, as (name, done, total)."""
        step: tuple[str, int, int] = self.steps.recv()
        return step

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.join()


@contextmanager
def started(work: Callable[..., object], *arguments: object) -> Iterator[Job]:
    """A process that runs ``work(*arguments, progress)``; after the block it is dead."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_run, args=(work, arguments, theirs), daemon=True)
    process.start()
    theirs.close()
    job = Job(process, ours)
    try:
        yield job
    finally:
        job.kill()
        ours.close()


def _run(work: Callable[..., object], arguments: tuple[object, ...], steps: Connection) -> None:
    work(*arguments, lambda *step: steps.send(step))
