"""A worker of an experiment: it loads the model once, and carries out the steps that it is given."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenprune.config import Method
from tokenprune.executors.service import Service
from tokenprune.experiment.config import ExperimentConfig
from tokenprune.experiment.part import Part, select_batches
from tokenprune.experiment.results import Results
from tokenprune.experiment.steps import Asked, Loaded, OwnSteps

Report = Callable[[Any], None]


class Order(ABC):
    """Something that a worker does."""

    @abstractmethod
    def run(self, steps: OwnSteps, report: Report) -> Any:
        """Do it; see :meth:`Service.handle`."""


@dataclass(frozen=True)
class StepOrder(Order):
    """A step that one worker does for all; reports are its progress.

    Attributes:
        step: The method of :class:`Steps`.
        arguments: Its arguments, without the progress.
        methods: The methods as another worker has prepared them; None before.
    """

    step: Literal["prepare", "time", "capture"]
    arguments: tuple[Any, ...]
    methods: Mapping[str, Method] | None = None

    def run(self, steps: OwnSteps, report: Report) -> Any:
        """See :meth:`Order.run`."""
        if self.methods is not None:
            steps.adopt(self.methods)
        return getattr(steps, self.step)(*self.arguments, lambda *step: report(step))


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
