"""A worker of an experiment: it loads the model once, and carries out the steps that it is given."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenprune.config import Method
from tokenprune.executors.service import Service
from tokenprune.experiment.choosing import Choices
from tokenprune.experiment.config import ExperimentConfig
from tokenprune.experiment.examples import Stored
from tokenprune.experiment.part import Part, select_batches
from tokenprune.experiment.results import Results
from tokenprune.experiment.steps import Asked, Loaded, OwnSteps, Prepared

Report = Callable[[Any], None]


class Order(ABC):
    """Something that a worker does."""

    @abstractmethod
    def run(self, steps: OwnSteps, report: Report) -> Any:
        """Do it; see :meth:`Service.handle`."""


@dataclass(frozen=True)
class PrepareOrder(Order):
    """Arguments of :meth:`Steps.prepare`; reports are its progress."""

    keys: tuple[str, ...]
    earlier: Choices
    keep_oracle: bool

    def run(self, steps: OwnSteps, report: Report) -> Prepared:
        """See :meth:`Steps.prepare`."""
        return steps.prepare(self.keys, self.earlier, self.keep_oracle, lambda *step: report(step))


@dataclass(frozen=True, eq=False)
class AnswerOrder(Order):
    """Batches to answer, and the methods as another worker has prepared them; reports are what is answered."""

    batches: tuple[Asked, ...]
    methods: Mapping[str, Method]

    def run(self, steps: OwnSteps, report: Report) -> None:
        """See :meth:`Steps.answer`."""
        steps.adopt(self.methods)
        for asked in self.batches:
            steps.batches.set_skipped(asked.number, asked.skipped)
            for answered in steps.answer_batch(asked):
                report(answered)


@dataclass(frozen=True)
class TimeOrder(Order):
    """Arguments of :meth:`Steps.time`; reports are its progress."""

    keys: tuple[str, ...]
    methods: Mapping[str, Method]

    def run(self, steps: OwnSteps, report: Report) -> dict[str, list[float]]:
        """See :meth:`Steps.time`."""
        steps.adopt(self.methods)
        return steps.time(self.keys, lambda *step: report(step))


@dataclass(frozen=True)
class CaptureOrder(Order):
    """Arguments of :meth:`Steps.capture`; reports are its progress."""

    keys: tuple[str, ...]
    positions: tuple[int, ...]
    methods: Mapping[str, Method]

    def run(self, steps: OwnSteps, report: Report) -> tuple[Stored, str | None]:
        """See :meth:`Steps.capture`."""
        steps.adopt(self.methods)
        return steps.capture(self.keys, self.positions, lambda *step: report(step))


class ExperimentService(Service):
    """Carries out orders with the experiment's model.

    Args:
        config: The experiment.
        part: The part of it.
        folder: The folder of its files; only tunes of ``tuned`` write there.
        work: The folder that relative paths start from.
    """

    def __init__(self, config: ExperimentConfig, part: Part, folder: Path, work: Path) -> None:
        with suppress(OSError):  # another machine may not have it, and paths may all be absolute
            os.chdir(work)
        self._steps = OwnSteps(config, select_batches(config, part), Results(folder))

    def hello(self) -> Loaded:
        """Load the model."""
        return self._steps.load()

    def handle(self, order: Order, report: Report) -> Any:
        """See :meth:`Service.handle`."""
        return order.run(self._steps, report)
