"""Toy tasks that kill the process, or fail, while they score an answer: once, or always."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

from tests.support.toy import ToyTask
from tokenprune.tasks.base import Sample


class DeadlyTask(ToyTask):
    """Kills its process with SIGKILL when it scores one sample.

    Attributes:
        sample: Id of the sample.
        once: A file that is made by the first kill and keeps later processes alive; None to kill each of them.
        nth: Which answer to the sample kills: 1 is the unpruned model's.
    """

    sample: str
    once: str | None = None
    nth: int = 1

    def score(self, sample: Sample, text: str) -> float:
        if sample.id == self.sample and not (self.once and Path(self.once).exists()):
            COUNTS[sample.id] = COUNTS.get(sample.id, 0) + 1
            if COUNTS[sample.id] == self.nth:
                if self.once:
                    Path(self.once).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().score(sample, text)


#: Answers to each sample in this process.
COUNTS: dict[str, int] = {}


class SlowTask(ToyTask):
    """Takes its time for every score, and keeps a file for each process that scores.

    Attributes:
        seconds: How long.
        processes: A folder; every process that scores makes a file there with its number as the name.
    """

    seconds: float
    processes: str

    def score(self, sample: Sample, text: str) -> float:
        (Path(self.processes) / str(os.getpid())).touch()
        time.sleep(self.seconds)
        return super().score(sample, text)


class LabelFreeTask(ToyTask):
    """Has no answers: agreement with the unpruned model is the score."""

    @property
    def label_free(self) -> bool:
        return True

    def score(self, sample: Sample, text: str) -> float:
        return float(text == sample.answer)


def full(*_: object, **__: object) -> None:
    """A disk without room."""
    raise OSError(errno.ENOSPC, "No space left on device")
