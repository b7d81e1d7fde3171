"""The steps of an experiment on workers: one of them prepares, all of them answer."""

from __future__ import annotations

import secrets
import shutil
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tokenprune.config import Method
from tokenprune.core.forward_errors import of_samples
from tokenprune.core.references import UNPRUNED
from tokenprune.errors import ForwardError, OutputError, TokenPruneError, TokenPruneWarning
from tokenprune.executors.base import Crew
from tokenprune.executors.pool import TRIES, Pool, Work
from tokenprune.executors.service import Setup
from tokenprune.experiment import examples
from tokenprune.experiment.choosing import Choices
from tokenprune.experiment.config import ExperimentConfig
from tokenprune.experiment.losses import IN_A_ROW
from tokenprune.experiment.part import Part
from tokenprune.experiment.results import Results
from tokenprune.experiment.steps import Answered, Asked, Loaded, Prepared, Steps
from tokenprune.experiment.worker import AnswerOrder, ExperimentService, StepOrder
from tokenprune.tuning.steps import Progress

#: How the folders begin through which workers speak that have no other way.
SCRATCH = ".workers-"
#: Batches that a worker is given at once, at most. What it has not begun when it dies is given to others.
MOST_BATCHES = 16
#: Failed jobs that the error at the end names; it counts the others.
NAMED = 5


def remove_scratch(folder: Results) -> None:
    """Remove what dead drivers have left. Workers of theirs that still live find that, and end.

    Args:
        folder: The folder of the files; this process holds its lock.
    """
    for path in folder.folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(path, ignore_errors=True)


class RemoteSteps(Steps):
    """The steps on workers. They are started when the first step is due.

    The workers write nothing into the folder: they report to this process, which does. So a worker that outlives it can
    do no harm to the run that goes on.

    Args:
        crew: The workers.
        missing: How many batches will be asked.
        config: The experiment.
        part: The part of it.
        folder: The folder of its files.
    """

    def __init__(self, crew: Crew, missing: int, config: ExperimentConfig, part: Part, folder: Results) -> None:
        self.crew, self.missing = crew, missing
        self.config, self.part, self.folder = config, part, folder
        self._pool: Pool | None = None
        self._loaded: Loaded | None = None
        self._methods: Mapping[str, Method] | None = None

    @property
    def prepared(self) -> bool:
        """See :meth:`Steps.prepared`."""
        return self._methods is not None

    def load(self) -> Loaded:
        """See :meth:`Steps.load`."""
        self._open().wait()
        assert self._loaded is not None
        return self._loaded

    def prepare(self, keys: Sequence[str], earlier: Choices, keep_oracle: bool, progress: Progress) -> Prepared:
        """See :meth:`Steps.prepare`."""
        prepared: Prepared = self._once(StepOrder("prepare", (tuple(keys), earlier, keep_oracle)), progress)
        self._methods = prepared.methods
        return prepared

    def answer(self, asked: Iterable[Asked]) -> Iterator[list[Answered]]:
        """See :meth:`Steps.answer`."""
        work = Answers(iter(asked), self.missing, self._methods or {}, self.config.batch_size)
        yield from self._open().run(work)
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
        if self._pool is not None:
            self._pool.close()

    def _open(self) -> Pool:
        if self._pool is None:
            scratch = self.folder.folder.absolute() / f"{SCRATCH}{secrets.token_hex(4)}"
            make = partial(ExperimentService, self.config, self.part, self.folder.folder, Path.cwd())
            count = max(1, min(self.crew.number, self.missing))
            self._pool = Pool(self.crew.executor.open(count, Setup(make, scratch)), count, self._accept)
        return self._pool

    def _once(self, order: StepOrder, progress: Progress) -> Any:
        return self._open().once(order, lambda step: progress(*step))

    def _accept(self, loaded: Loaded) -> None:
        """Take up what a worker has loaded.

        Raises:
            OutputError: It is another model, or other code, than that of the first worker or of the folder.
        """
        if self._loaded is None:
            self.folder.check_origin(loaded.origin)
            self._loaded = loaded
            return
        found = self._loaded.origin.difference(loaded.origin)
        if found is not None:
            what, mine, theirs = found
            raise OutputError(
                f"it has another {what}: {theirs}, and the first worker has {mine}",
                "let all workers have the same checkpoint and versions",
            )
        unknown = self._loaded.origin.unknown(loaded.origin)
        if unknown:
            text = f"whether all workers have the same {' and '.join(unknown)} is unknown: they could not be read"
            warnings.warn(text, TokenPruneWarning, stacklevel=2)


class Answers(Work):
    """The jobs of an experiment: a series with one batch each. The series of a batch go to one worker.

    A job whose worker dies, or which fails, is tried again; one that always does is given up and named at the end. The
    size of a job does not depend on the workers.

    Args:
        asked: The batches.
        count: How many these are, about.
        methods: The methods with their layers.
        batch_size: Samples of a batch, for names of jobs.
    """

    def __init__(self, asked: Iterator[Asked], count: int, methods: Mapping[str, Method], batch_size: int) -> None:
        self._asked, self._left, self._methods, self._batch_size = asked, count, methods, batch_size
        self._again: deque[Asked] = deque()
        #: Order that a worker has, by its identity -> its batches that are not done, with the series that are missing
        self._work: dict[int, dict[int, Asked]] = {}
        self._exhausted = False
        self._tries: dict[tuple[int, str], int] = {}
        self._given_up: dict[str, TokenPruneError] = {}
        self._in_a_row = 0

    @property
    def finished(self) -> bool:
        """See :meth:`Work.finished`."""
        return self._exhausted and not self._again and not self._work

    def take(self, workers: int) -> AnswerOrder | None:
        """See :meth:`Work.take`."""
        batches: list[Asked] = []
        share = self._left // (4 * workers)  # few at the end, so that all workers end together
        for _ in range(1 if self._again else max(1, min(MOST_BATCHES, share))):
            item = self._next()
            if item is None:
                break
            batches.append(item)
        if not batches:
            return None
        order = AnswerOrder(tuple(batches), self._methods)
        self._work[id(order)] = {item.number: item for item in batches}
        return order

    def _next(self) -> Asked | None:
        if self._again:
            return self._again.popleft()
        item = next(self._asked, None)
        self._left -= 1
        self._exhausted = item is None
        return item

    def report(self, order: AnswerOrder, content: Answered) -> None:
        """See :meth:`Work.report`."""
        left = self._work[id(order)]
        item = left[content.number]
        unpruned = {row["position"]: row["prediction"] for row in content.rows} if content.key == UNPRUNED else {}
        left[content.number] = replace(
            item,
            keys=tuple(key for key in item.keys if key != content.key),
            skipped=item.skipped | {row["position"]: row["error"] for row in content.skipped},
            unpruned=item.unpruned | unpruned,
        )
        if not left[content.number].keys:
            del left[content.number]
        self._in_a_row = 0

    def done(self, order: AnswerOrder, content: None) -> None:
        """See :meth:`Work.done`."""
        left = self._work.pop(id(order))
        assert not left, "a worker says that it is done, and it is not"

    def failed(self, order: AnswerOrder, error: TokenPruneError, died: bool) -> None:
        """See :meth:`Work.failed`."""
        if not died and not of_samples(error):  # it comes with every sample
            raise error
        left = list(self._work.pop(id(order)).values())
        if left:  # else it died when all was done
            self._again.extendleft(reversed([*self._tried(left[0], error), *left[1:]]))

    def _tried(self, asked: Asked, error: TokenPruneError) -> list[Asked]:
        """What is left of a batch whose first job failed.

        Raises:
            TokenPruneError: So many jobs fail one after the other that the samples are not the reason.
        """
        key = asked.keys[0]
        tries = self._tries[asked.number, key] = self._tries.get((asked.number, key), 0) + 1
        if tries < TRIES:
            return [asked]
        others = () if key == UNPRUNED else asked.keys[1:]  # they are compared with the unpruned model
        first = asked.number * self._batch_size + 1
        self._given_up[f"{key!r} on samples {first} to {first + self._batch_size - 1}"] = error
        self._in_a_row += 1
        if self._in_a_row == IN_A_ROW:
            raise self._error(f"{IN_A_ROW} jobs in a row fail, so it is not the samples")
        return [replace(asked, keys=others)] if others else []

    def check(self) -> None:
        """Say which jobs were given up.

        Raises:
            ForwardError: Some were.
        """
        if self._given_up:
            raise self._error("all others are done; the same command tries these again")

    def _error(self, fix: str) -> TokenPruneError:
        count = len(self._given_up)
        named = [f"{name} ({error.what})" for name, error in list(self._given_up.items())[:NAMED]]
        more = f", and {count - NAMED} more" if count > NAMED else ""
        what = f"{count} {'job' if count == 1 else 'jobs'} failed {TRIES} times each: {', '.join(named)}{more}"
        return ForwardError(what, fix)
