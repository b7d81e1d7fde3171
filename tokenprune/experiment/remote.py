"""The steps of an experiment on workers: one of them prepares, all of them answer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tokenprune.config import Method
from tokenprune.core.forward_errors import of_samples
from tokenprune.core.references import UNPRUNED
from tokenprune.errors import TokenPruneError
from tokenprune.executors.base import Crew
from tokenprune.executors.remote import Jobs, Team
from tokenprune.experiment import examples
from tokenprune.experiment.choosing import Choices
from tokenprune.experiment.config import ExperimentConfig
from tokenprune.experiment.part import Part
from tokenprune.experiment.results import Results
from tokenprune.experiment.steps import Answered, Asked, Loaded, Prepared, Steps
from tokenprune.experiment.worker import AnswerOrder, ExperimentService, StepOrder
from tokenprune.tuning.steps import Progress


class RemoteSteps(Steps):
    """The steps on workers. They are started when the first step is due.

    Args:
        crew: The workers.
        missing: How many batches will be asked.
        config: The experiment.
        part: The part of it.
        folder: The folder of its files.
    """

    def __init__(self, crew: Crew, missing: int, config: ExperimentConfig, part: Part, folder: Results) -> None:
        make = partial(ExperimentService, config, part, folder.folder, Path.cwd())
        self._team, self._missing = Team(crew, missing, make, folder), missing
        self._batch_size = config.batch_size
        self._methods: Mapping[str, Method] | None = None

    @property
    def prepared(self) -> bool:
        """See :meth:`Steps.prepared`."""
        return self._methods is not None

    def load(self) -> Loaded:
        """See :meth:`Steps.load`."""
        self._team.pool.wait()
        loaded: Loaded = self._team.hello
        return loaded

    def prepare(self, keys: Sequence[str], earlier: Choices, keep_oracle: bool, progress: Progress) -> Prepared:
        """See :meth:`Steps.prepare`."""
        prepared: Prepared = self._once(StepOrder("prepare", (tuple(keys), earlier, keep_oracle)), progress)
        self._methods = prepared.methods
        return prepared

    def answer(self, asked: Iterable[Asked]) -> Iterator[list[Answered]]:
        """See :meth:`Steps.answer`."""
        work = Answers(iter(asked), self._missing, self._batch_size)
        work.methods = self._methods or {}
        yield from self._team.pool.run(work)
        work.check()

    def time(self, keys: Sequence[str], progress: Progress) -> dict[str, list[float]]:
        """See :meth:`Steps.time`."""
        ratios: dict[str, list[float]] = self._once(StepOrder("time", (tuple(keys),), self._methods), progress)
        return ratios

    def capture(
        self, keys: Sequence[str], positions: Sequence[int], progress: Progress
    ) -> tuple[examples.Stored, str | None]:
        """See :meth:`Steps.capture`."""
        order = StepOrder("capture", (tuple(keys), tuple(positions)), self._methods)
        found: tuple[examples.Stored, str | None] = self._once(order, progress)
        return found

    def close(self) -> None:
        """See :meth:`Steps.close`."""
        self._team.close()

    def _once(self, order: StepOrder, progress: Progress) -> Any:
        return self._team.pool.once(order, lambda step: progress(*step))


class Answers(Jobs[Asked]):
    """The jobs of an experiment: a series with one batch each. Those that are given up are named at the end.

    Attributes:
        methods: The methods with their layers.
    """

    methods: Mapping[str, Method]

    def order(self, items: tuple[Asked, ...]) -> AnswerOrder:
        """See :meth:`Jobs.order`."""
        return AnswerOrder(items, self.methods)

    def left(self, item: Asked, content: Answered) -> Asked:
        """See :meth:`Jobs.left`."""
        unpruned = {row["position"]: row["prediction"] for row in content.rows} if content.key == UNPRUNED else {}
        return replace(
            item,
            keys=tuple(key for key in item.keys if key != content.key),
            skipped=item.skipped | {row["position"]: row["error"] for row in content.skipped},
            unpruned=item.unpruned | unpruned,
        )

    def without(self, item: Asked, error: TokenPruneError) -> Asked | None:
        """See :meth:`Jobs.without`; all others are compared with the unpruned model."""
        others = () if item.keys[0] == UNPRUNED else item.keys[1:]
        return replace(item, keys=others) if others else None

    def tries_again(self, error: TokenPruneError) -> bool:
        """See :meth:`Jobs.tries_again`."""
        return of_samples(error)  # any other comes with every sample

    def check(self) -> None:
        """Say which jobs were given up.

        Raises:
            ForwardError: Some were.
        """
        if self._given_up:
            raise self.error("all others are done; the same command tries these again")
