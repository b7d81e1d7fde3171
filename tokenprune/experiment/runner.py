"""Running an experiment: every series answers every sample. A stopped run can be continued at any time."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenprune.core.notebook import progress_in_notebooks
from tokenprune.core.references import ORACLE, UNPRUNED
from tokenprune.errors import ConfigError, TokenPruneWarning
from tokenprune.executors.base import Crew, Executor
from tokenprune.executors.remote import remove_scratch
from tokenprune.experiment import examples
from tokenprune.experiment.answers import Answers
from tokenprune.experiment.batches import Batches, several_sizes
from tokenprune.experiment.choosing import Choices
from tokenprune.experiment.config import ExperimentConfig
from tokenprune.experiment.losses import Losses, LossesInOrder, TooManyLostError
from tokenprune.experiment.part import Part, chosen_series, select_batches
from tokenprune.experiment.remote import RemoteSteps
from tokenprune.experiment.report import ShownResult
from tokenprune.experiment.result import ExperimentResult
from tokenprune.experiment.results import RUN, Results, own_settings_unused
from tokenprune.experiment.series import Series, definitions
from tokenprune.experiment.steps import Answered, Asked, OwnSteps, Prepared, Steps
from tokenprune.fingerprint.origin import Origin
from tokenprune.models.code import used_code
from tokenprune.tuning.steps import Progress


@progress_in_notebooks
def run_experiment(
    config: ExperimentConfig,
    progress: Progress | None = None,
    part: Part | None = None,
    executor: Executor | Mapping[str, Any] | str | None = None,
    workers: int | None = None,
) -> ExperimentResult:
    """Run an experiment, or continue the one in its output folder.

    Before the first answer, every method runs once on one sample. Only then is the folder reserved for the experiment.

    Args:
        config: The experiment.
        progress: Called after every batch with (series key, batches done, batches in total); None shows a bar in a
            notebook.
        part: The part of it to run; all by default.
        executor: Starts the workers that share the work: its name, or a mapping with ``name`` and its fields. None
            answers in this process. The files are the same.
        workers: How many workers there are; None leaves it to the executor.

    Raises:
        TokenPruneError: The configuration is wrong, a method cannot run, or workers fail.
    """
    if not isinstance(config, ExperimentConfig):
        raise ConfigError(
            f"run_experiment needs an ExperimentConfig, got {type(config).__name__}",
            "use tp.ExperimentConfig.from_yaml(path)",
        )
    part = part or Part()
    results = Results(config.output)
    with results.locked():
        return _Experiment(config, part, results, progress, Crew.of(executor, workers)).run()


def published_settings(series: Sequence[Series]) -> dict[str, str]:
    """Name of every method with published settings -> for which model, and where they stand."""
    return {item.method_name: item.settings for item in series if item.settings is not None}


def asks_for_oracle(config: ExperimentConfig, part: Part) -> bool:
    """Whether the user named the upper bound: then it must run. One that the experiment added runs where it can."""
    return ORACLE in {*(entry.title for entry in config.methods), *part.only}


class _Experiment:
    """One run of an experiment, inside the lock of its folder."""

    def __init__(
        self, config: ExperimentConfig, part: Part, results: Results, progress: Progress | None, workers: Crew | None
    ) -> None:
        self.config, self.part, self.results, self.workers = config, part, results, workers
        self.progress: Progress = progress or (lambda name, done, total: None)
        self.series = chosen_series(config, part)
        self.sizes = self._earlier_sizes()
        self.set_aside: dict[str, Any] = results.read_mapping(RUN).get("set_aside") or {}
        self.asked_for_oracle = asks_for_oracle(config, part)

    @cached_property
    def code(self) -> dict[str, str | None]:
        """Versions of the code of model, task and metrics."""
        return used_code(self.config.model, self.config.task)

    def _earlier_sizes(self) -> list[int]:
        """The sizes of the batches that earlier runs asked."""
        known = self.results.read_mapping(RUN).get("batch_sizes") or [self.results.config().get("batch_size")]
        return [size for size in known if isinstance(size, int)]

    def _add_size(self, size: int) -> None:
        """Take up the size of the batches that are asked now.

        Warns:
            TokenPruneWarning: Others were asked before.
        """
        if set(self.sizes) - {size}:
            warnings.warn(
                f"{self.results.folder} has answers with batch_size {', '.join(map(str, self.sizes))} and goes on with"
                f" {size}: what is answered counts, and answers may differ by rounding",
                TokenPruneWarning,
                stacklevel=3,
            )
        self.sizes = list(dict.fromkeys([*self.sizes, size]))

    def run(self) -> ExperimentResult:
        """Answer what is missing and return all answers."""
        left_out, batches, done = self._resume()
        remove_scratch(self.results)
        missing = sum(any((item.key, number) not in done for item in self.series) for number in self._used(batches))
        steps = self._steps(batches, missing)
        try:
            return self._run(steps, left_out, batches, done)
        finally:
            steps.close()

    def _steps(self, batches: Batches, missing: int) -> Steps:
        if self.workers is None:
            return OwnSteps(self.config, batches, self.results)
        return RemoteSteps(self.workers, missing, self.config, self.part, self.results)

    def _run(
        self, steps: Steps, left_out: dict[str, str], batches: Batches, done: set[tuple[str, int]]
    ) -> ExperimentResult:
        results = self.results
        choices: Choices = results.read_mapping("choices.json")
        timing: dict[str, list[float]] = results.read_mapping("timing.json")
        if not self._finished(batches, done, choices, timing):
            origin = self._load(steps)
            prepared = self._prepare(steps, choices)
            if prepared.no_foreground is not None and not self.asked_for_oracle and self.config.oracle:
                left_out = {ORACLE: prepared.no_foreground}
                self._leave_out(left_out)
            choices = choices | prepared.choices
            results.claim(self.config.settings(), origin, self._definitions())
            results.write_json("choices.json", choices)
            results.write_json("fingerprints.json", self.config.task.fingerprints())
            results.write_json("environment.json", prepared.environment)
            results.write_json("left_out.json", left_out)
            batches.tidy(results)
            self._add_size(batches.size)
            self._store(batches)
            if self.workers is not None:
                results.begin_unordered()
            self._answer(steps, batches, done)
            if self.config.timing:
                timing = timing | self._time(steps)
        else:
            batches.tidy(results)
            self._store(batches)  # this part may be smaller than the one that ran before
        keys = [item.key for item in self.series]
        results.put_in_order(keys, batches.size)
        answers = Answers.read(filter(batches.uses, results.rows()), keys)
        self._show(steps, batches, choices, answers)
        return ShownResult(
            str(results.folder),
            answers,
            {key: ratios for key, ratios in timing.items() if key in keys},
            {key: choice for key, choice in choices.items() if key in keys},
            batches.skipped,
            left_out,
            self.config.task.label_free,
            published_settings(self.series),
            (*several_sizes(self.sizes), *own_settings_unused(self.set_aside)),
        )

    def _load(self, steps: Steps) -> Origin:
        """Load the model, unless it is another one than that of the folder's answers."""
        loaded = steps.load()
        self.set_aside = loaded.set_aside
        self.results.check_origin(loaded.origin)
        return loaded.origin

    def _prepare(self, steps: Steps, earlier: Choices) -> Prepared:
        keep_oracle = self.asked_for_oracle or not self.config.oracle
        return steps.prepare([item.key for item in self.series], earlier, keep_oracle, self.progress)

    def _store(self, batches: Batches) -> None:
        """Write what a result needs beside its rows, for :func:`tokenprune.experiment.folder.read_result`."""
        stored = {
            "series": [item.key for item in self.series],
            "limit": batches.count,
            "questions": batches.count,
            "label_free": self.config.task.label_free,
            "settings": published_settings(self.series),
            "batch_sizes": self.sizes,
            "set_aside": self.set_aside,
        }
        self.results.write_json(RUN, stored)

    def _show(self, steps: Steps, batches: Batches, choices: Choices, answers: Answers) -> None:
        """Keep the examples of the report, where the folder does not have them yet."""
        positions = examples.most_changed(answers, self.config.examples)
        found, reason = examples.stored(self.results)
        there = examples.complete(found, positions, self.series)
        if (there and list(found) == positions) or (reason is not None and not steps.prepared):
            return
        if not there:
            if not steps.prepared:
                self._load(steps)
                self._prepare(steps, choices)
            found, reason = steps.capture([item.key for item in self.series], positions, self.progress)
        examples.write(self.results, found, positions, reason)

    def _resume(self) -> tuple[dict[str, str], Batches, set[tuple[str, int]]]:
        """Take up what the folder holds: methods left out, the samples, and what has been answered."""
        self.results.check_settings(self.config.settings(), self.config.free())
        self.results.check_definitions(self._definitions())
        self.results.check_code(self.code)
        left_out: dict[str, str] = {} if self.asked_for_oracle else self.results.read_mapping("left_out.json")
        self._leave_out(left_out)
        batches = select_batches(self.config, self.part)
        self.results.check_samples(self.config.task.fingerprints())
        return left_out, batches, batches.resume(self.results) if self.results.claimed else set()

    def _definitions(self) -> dict[str, Any]:
        return definitions(self.series)

    def _leave_out(self, titles: dict[str, str]) -> None:
        self.series = [item for item in self.series if item.method_name not in titles]

    def _finished(
        self, batches: Batches, done: set[tuple[str, int]], choices: Choices, timing: dict[str, list[float]]
    ) -> bool:
        answered = all((item.key, number) in done for item in self.series for number in self._used(batches))
        pruned = self.series[1:]
        timed = not self.config.timing or all(len(timing.get(item.key, ())) == self.config.timing for item in pruned)
        return answered and timed and {item.key for item in pruned} <= choices.keys()

    @staticmethod
    def _used(batches: Batches) -> Iterator[int]:
        """Numbers of the batches that have a sample that can be used."""
        for number in batches.numbers:
            if any(position not in batches.skipped for position in batches.positions(number)):
                yield number

    def _answer(self, steps: Steps, batches: Batches, done: set[tuple[str, int]]) -> None:
        """Answer all batches that are not done.

        The loop goes batch by batch over all series, so that the series of a stopped run cover the same samples.
        """
        total = len(self.series) * len(batches.numbers)
        finished = sum((item.key, number) in done for item in self.series for number in batches.numbers)
        losses = LossesInOrder(self._losses(batches, done))
        for found in steps.answer(self._asked(batches, done, losses)):
            self._take_up(found, batches, losses)
            for answered in found:
                finished += 1
                self.progress(answered.key, finished, total)

    def _asked(self, batches: Batches, done: set[tuple[str, int]], losses: LossesInOrder) -> Iterator[Asked]:
        """The batches that are not done, one by one."""
        unpruned = self._earlier_answers() if self.config.task.label_free else {}
        for number in batches.numbers:
            missing = tuple(item.key for item in self.series if (item.key, number) not in done)
            if missing:
                positions = batches.positions(number)
                skipped = {at: batches.skipped[at] for at in positions if at in batches.skipped}
                losses.expect(number, missing)
                yield Asked(number, missing, skipped, {at: unpruned[at] for at in positions if at in unpruned})

    def _take_up(self, found: Sequence[Answered], batches: Batches, losses: LossesInOrder) -> None:
        """Keep answers.

        Raises:
            TokenPruneError: Too many samples fail alone; what was answered before is kept.
        """
        kept: list[Answered] = []
        try:
            for answered in found:
                losses.came(answered.number, answered.key, answered.events)
                kept.append(answered)
        except TooManyLostError as stop:
            self._keep(kept, batches)
            batches.take_back(stop.positions, self.results)
            raise stop.error from stop.error.__cause__
        self._keep(kept, batches)

    def _keep(self, answered: Sequence[Answered], batches: Batches) -> None:
        skipped = [row for item in answered for row in item.skipped]
        rows = [row for item in answered for row in item.rows]
        if skipped:
            batches.skipped |= {row["position"]: row["error"] for row in skipped}
            self.results.skip(skipped)
        if rows:
            self.results.append(rows)

    def _losses(self, batches: Batches, done: set[tuple[str, int]]) -> Losses:
        """The samples that earlier runs asked, and those that they left out because a method failed on them."""
        asked = sum(len(batches.positions(number)) for number in batches.numbers if (UNPRUNED, number) in done)
        return Losses(asked, sum("series" in row for row in self.results.skipped_rows()))

    def _earlier_answers(self) -> dict[int, str]:
        """The unpruned model's answers that are in the folder, by position."""
        return {row["position"]: row["prediction"] for row in self.results.rows() if row["series"] == UNPRUNED}

    def _time(self, steps: Steps) -> dict[str, list[float]]:
        ratios = steps.time([item.key for item in self.series], self.progress)
        self.results.write_json("timing.json", self.results.read_mapping("timing.json") | ratios)
        return ratios
