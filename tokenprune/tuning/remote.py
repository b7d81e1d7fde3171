"""The steps of a tune on workers: one of them makes the candidates, all of them measure."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tokenprune.config import Method
from tokenprune.engine.trials.race import AskedBatch, MeasuredOne
from tokenprune.errors import OutputError, TokenPruneError
from tokenprune.executors.base import Crew
from tokenprune.executors.remote import Jobs, Team
from tokenprune.executors.service import Service
from tokenprune.output.run_folder import RunFolder
from tokenprune.tuning.candidate_pool import CandidatePool
from tokenprune.tuning.config import TuneConfig
from tokenprune.tuning.measuring import Facts, Keep, Known, OwnSteps, TuneSteps


@dataclass(frozen=True, eq=False)
class MeasureOrder:
    """Batches to measure, and the methods by name; reports are what is measured.

    Attributes:
        asked: The batches.
        methods: The methods.
        prints: The fingerprints of all batches as the first worker has read them.
    """

    asked: tuple[AskedBatch, ...]
    methods: Mapping[str, Method]
    prints: tuple[str | None, ...]


class TuneService(Service):
    """Carries out the steps of a tune with its model; an order is a :class:`MeasureOrder`, or what is known.

    Args:
        config: The tune.
        work: The folder that relative paths start from.
    """

    def __init__(self, config: TuneConfig, work: Path) -> None:
        with suppress(OSError):  # another machine may not have it, and paths may all be absolute
            os.chdir(work)
        self._steps = OwnSteps.of(config)

    def hello(self) -> Facts:
        """Load the model, and read the samples."""
        facts = self._steps.load()
        self._prints = facts.batches
        return facts

    def handle(self, order: MeasureOrder | Known, report: Callable[[Any], None]) -> Any:
        """See :meth:`Service.handle`.

        Raises:
            OutputError: This worker has read other samples than the first.
        """
        if isinstance(order, Known):
            return self._steps.candidates(order, report)
        if order.prints != self._prints:
            raise OutputError("workers have read other samples than the first one", "let all of them see the same data")
        for found in self._steps.measure(order.methods, order.asked, len(order.asked)):
            for item in found:
                report(item)
        return None


class RemoteSteps(TuneSteps):
    """The steps on workers; arguments: the workers, the tune, and the folder of its files."""

    def __init__(self, crew: Crew, config: TuneConfig, folder: RunFolder) -> None:
        self._team = Team(crew, crew.number, partial(TuneService, config, Path.cwd()), folder)
        self._batch_size = config.batch_size

    def load(self) -> Facts:
        """See :meth:`TuneSteps.load`."""
        self._team.pool.wait()
        facts: Facts = self._team.hello
        return facts

    def candidates(self, known: Known, keep: Keep) -> list[CandidatePool]:
        """See :meth:`TuneSteps.candidates`."""
        pools: list[CandidatePool] = self._team.pool.once(known, keep)
        return pools

    def measure(
        self, methods: Mapping[str, Method], asked: Iterable[AskedBatch], count: int
    ) -> Iterator[Sequence[MeasuredOne]]:
        """See :meth:`TuneSteps.measure`."""
        parts = -(-2 * self._team.count // max(1, count))  # a few batches are shared, too
        work = Measurements(_divided(asked, parts), count * parts, self._batch_size)
        work.methods, work.prints, work.given_up = methods, self._team.hello.batches, []
        for found in self._team.pool.run(work):
            yield found
            yield work.given_up
            work.given_up = []
        yield work.given_up

    def close(self) -> None:
        """See :meth:`TuneSteps.close`."""
        self._team.close()


def _divided(asked: Iterable[AskedBatch], parts: int) -> Iterator[AskedBatch]:
    """Batches, each in up to so many parts with some of the methods."""
    for item in asked:
        size = -(-len(item.keys) // parts)
        for start in range(0, len(item.keys), size):
            yield replace(item, keys=item.keys[start : start + size])


class Measurements(Jobs[AskedBatch]):
    """The jobs of a race: a method with one batch each. A method with a job that is given up cannot run.

    Attributes:
        methods: The methods.
        prints: The fingerprints of all batches.
        given_up: What is to be said of jobs that were given up.
    """

    methods: Mapping[str, Method]
    prints: tuple[str | None, ...]
    given_up: list[MeasuredOne]

    def order(self, items: tuple[AskedBatch, ...]) -> MeasureOrder:
        """See :meth:`Jobs.order`."""
        methods = {key: self.methods[key] for item in items for key in item.keys}
        return MeasureOrder(items, methods, self.prints)

    def left(self, item: AskedBatch, content: MeasuredOne) -> AskedBatch:
        """See :meth:`Jobs.left`."""
        return replace(item, keys=tuple(key for key in item.keys if key != content.key))

    def without(self, item: AskedBatch, error: TokenPruneError) -> AskedBatch | None:
        """See :meth:`Jobs.without`."""
        self.given_up.append(MeasuredOne(item.number, item.keys[0], error))
        return replace(item, keys=item.keys[1:]) if len(item.keys) > 1 else None
