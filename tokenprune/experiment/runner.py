"""Running an experiment: every series answers every sample. A stopped run can be continued at any time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenprune.core.clock import environment
from tokenprune.core.notebook import progress_in_notebooks
from tokenprune.core.references import ORACLE, UNPRUNED
from tokenprune.core.registry import suggest
from tokenprune.errors import ConfigError, OutputError
from tokenprune.experiment import examples
from tokenprune.experiment.answering import Answering, BatchInWork
from tokenprune.experiment.answers import Answers
from tokenprune.experiment.batches import Batch, Batches, Shard
from tokenprune.experiment.choosing import Choices, choose_series_layers, try_out, tune_series
from tokenprune.experiment.config import ExperimentConfig
from tokenprune.experiment.result import ExperimentResult
from tokenprune.experiment.results import RUN, Results
from tokenprune.experiment.series import Series, definitions
from tokenprune.experiment.series_model import why_no_foreground
from tokenprune.experiment.shown import ShownResult
from tokenprune.fingerprint.origin import Origin
from tokenprune.models.code import used_code
from tokenprune.tuning.steps import Progress


@dataclass(frozen=True)
class Part:
    """A part of an experiment.

    Attributes:
        limit: Only the first so many samples.
        only: Only the methods with these names in tables, and the unpruned model.
        shard: Only the batches of this shard, into a folder of its own.
        timed: Whether prefill times that are missing are measured. Shards never measure any.

    Raises:
        ConfigError: The limit is below 1.
    """

    limit: int | None = None
    only: tuple[str, ...] = ()
    shard: Shard | None = None
    timed: bool = True

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit {self.limit} uses no sample", "give 1 or more")


@progress_in_notebooks
def run_experiment(
    config: ExperimentConfig, progress: Progress | None = None, part: Part | None = None
) -> ExperimentResult:
    """Run an experiment, or continue the one in its output folder.

    Before the first answer, every method runs once on one sample. Only then is the folder reserved for the experiment.

    Args:
        config: The experiment.
        progress: Called after every batch with (series key, batches done, batches in total); None shows a bar in a
            notebook.
        part: The part of it to run; all by default.

    Raises:
        TokenPruneError: The configuration is wrong, or a method cannot run.
    """
    if not isinstance(config, ExperimentConfig):
        raise ConfigError(
            f"run_experiment needs an ExperimentConfig, got {type(config).__name__}",
            "use tp.ExperimentConfig.from_yaml(path)",
        )
    part = part or Part()
    results = Results(output_folder(config, part))
    with results.locked():
        return _Experiment(config, part, results, progress).run()


def output_folder(config: ExperimentConfig, part: Part) -> Path:
    """The folder of the results of an experiment, or of a shard of it."""
    return Path(config.output) / (part.shard.folder if part.shard is not None else "")


def chosen_series(config: ExperimentConfig, part: Part) -> list[Series]:
    """The series to run, the unpruned model first.

    Raises:
        ConfigError: ``only`` names a method that the experiment does not have.
    """
    series = list(config.series())
    titles = {item.method_name for item in series}
    for title in part.only:
        if title not in titles:
            raise ConfigError(f"the experiment has no method {title!r}", suggest(title, titles - {UNPRUNED}))
    return [item for item in series if not part.only or item.unpruned or item.method_name in part.only]


def published_settings(series: Sequence[Series]) -> dict[str, str]:
    """Name of every method with published settings -> for which model, and where they stand."""
    return {item.method_name: item.settings for item in series if item.settings is not None}


def asks_for_oracle(config: ExperimentConfig, part: Part) -> bool:
    """Whether the user named the upper bound: then it must run. One that the experiment added runs where it can."""
    return ORACLE in {*(entry.title for entry in config.methods), *part.only}


def select_batches(config: ExperimentConfig, part: Part) -> Batches:
    """The batches of a part of an experiment.

    Raises:
        ConfigError: The task has no samples, or the shard has no batch.
    """
    samples = config.task.samples()
    if not len(samples):
        raise ConfigError("the task has no samples", "check its settings")
    count = min(len(samples), part.limit or len(samples))
    batches = Batches(samples, count, config.batch_size, config.strict, part.shard)
    if not batches.numbers:
        raise ConfigError(
            f"there are more shards than batches of {config.batch_size} of the {count} samples", "use fewer shards"
        )
    return batches


def finished(config: ExperimentConfig, part: Part) -> bool:
    """Whether a part of an experiment has all its answers."""
    results = Results(output_folder(config, part))
    if not results.folder.is_dir():
        return False
    with results.locked():
        return _Experiment(config, part, results, None).is_finished()


class _Experiment:
    """One run of an experiment, inside the lock of its folder."""

    def __init__(self, config: ExperimentConfig, part: Part, results: Results, progress: Progress | None) -> None:
        self.config, self.part, self.results = config, part, results
        self.progress: Progress = progress or (lambda name, done, total: None)
        self.series = chosen_series(config, part)
        self.asked_for_oracle = asks_for_oracle(config, part)

    @cached_property
    def code(self) -> dict[str, str | None]:
        """Versions of the code of model, task and metrics."""
        return used_code(self.config.model, self.config.task)

    @property
    def rounds(self) -> int:
        """Rounds of prefill timings to measure; 0 for none."""
        return self.config.timing if self.part.timed and self.part.shard is None else 0

    def run(self) -> ExperimentResult:
        """Answer what is missing and return all answers."""
        results = self.results
        left_out, batches, done = self._resume()
        choices: Choices = results.read_mapping("choices.json")
        timing: dict[str, list[float]] = results.read_mapping("timing.json")
        answering: Answering | None = None
        if not self._finished(batches, done, choices, timing):
            answering, origin = self._load()
            first = batches.first(answering.loaded, answering.check_usable)
            reason = why_no_foreground(first.samples[0], answering.loaded)
            if reason is not None and not self.asked_for_oracle and self.config.oracle:
                left_out = {ORACLE: reason}
                self._leave_out(left_out)
            choices = choices | self._choose(answering, first, choices)
            results.claim(self.config.settings(), origin, self._definitions())
            results.write_json("choices.json", choices)
            results.write_json("fingerprints.json", self.config.task.fingerprints())
            results.write_json("environment.json", environment(answering.loaded.model.device))
            results.write_json("left_out.json", left_out)
            self._store(batches)
            self._answer(answering, batches, done)
            if self.rounds:
                timing = timing | self._time(answering, batches)
        else:
            self._store(batches)  # this part may be smaller than the one that ran before
        keys = {item.key for item in self.series}
        answers = Answers.read(filter(batches.uses, results.rows()), keys)
        self._show(answering, batches, choices, answers)
        return ShownResult(
            str(results.folder),
            answers,
            {key: ratios for key, ratios in timing.items() if key in keys},
            {key: choice for key, choice in choices.items() if key in keys},
            batches.skipped,
            left_out,
            self.config.task.label_free,
            published_settings(self.series),
        )

    def _load(self) -> tuple[Answering, Origin]:
        """Load the model, unless it is another one than that of the folder's answers."""
        answering = Answering(self.config, self.config.model.load())
        origin = answering.origin(self.code)
        self.results.check_origin(origin)
        return answering, origin

    def _store(self, batches: Batches) -> None:
        """Write what a result needs beside its rows, for :func:`tokenprune.experiment.folder.read_result`."""
        size, count = batches.size, batches.count
        stored = {
            "series": [item.key for item in self.series],
            "limit": count,
            "questions": sum(min(size, count - number * size) for number in batches.numbers),
            "label_free": self.config.task.label_free,
            "settings": published_settings(self.series),
        }
        self.results.write_json(RUN, stored)

    def _show(self, answering: Answering | None, batches: Batches, choices: Choices, answers: Answers) -> None:
        """Keep the examples of the report, where the folder does not have them yet."""
        positions = examples.most_changed(answers, self.config.examples)
        found, reason = examples.stored(self.results)
        there = examples.complete(found, positions, self.series)
        if (there and list(found) == positions) or (reason is not None and answering is None):
            return
        if not there:
            if answering is None:
                answering, _ = self._load()
                self._choose(answering, batches.first(answering.loaded), choices)
            found, reason = examples.capture(answering, batches, self.series, positions, self._show_examples)
        examples.write(self.results, found, positions, reason)

    def _show_examples(self, done: int, total: int) -> None:
        self.progress("examples", done, total)

    def _choose(self, answering: Answering, first: Batch, earlier: Choices) -> Choices:
        """Choose layers, try every series out, and only then tune: a tune takes longest."""
        stated = [item for item in self.series if item.tune is None]
        choices = choose_series_layers(answering, stated, len(first.samples[0].images))
        try_out(answering, stated, first)
        tuned = [item for item in self.series if item.tune is not None]
        for item in tuned:
            choices[item.key] = tune_series(
                answering, item, self.results.folder, earlier.get(item.key), self._show_tune
            )
        try_out(answering, tuned, first)
        return choices

    def is_finished(self) -> bool:
        """Whether everything has been answered and timed."""
        _, batches, done = self._resume()
        choices = self.results.read_mapping("choices.json")
        return self._finished(batches, done, choices, self.results.read_mapping("timing.json"))

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
        timed = not self.rounds or all(len(timing.get(item.key, ())) == self.rounds for item in pruned)
        return answered and timed and {item.key for item in pruned} <= choices.keys()

    @staticmethod
    def _used(batches: Batches) -> Iterator[int]:
        """Numbers of the batches that have a sample that can be used."""
        for number in batches.numbers:
            start, end = number * batches.size, min((number + 1) * batches.size, batches.count)
            if any(position not in batches.skipped for position in range(start, end)):
                yield number

    def _answer(self, answering: Answering, batches: Batches, done: set[tuple[str, int]]) -> None:
        """Answer all batches that are not done.

        The loop goes batch by batch over all series, so that the series of a stopped run cover the same samples.
        """
        total = len(self.series) * len(batches.numbers)
        finished = sum((item.key, number) in done for item in self.series for number in batches.numbers)
        unpruned = self._earlier_answers() if self.config.task.label_free else {}
        for number in batches.numbers:
            missing = [item for item in self.series if (item.key, number) not in done]
            if not missing:
                continue
            work = self._read(answering, batches, number, missing[0].unpruned)
            if work is None:
                finished += len(missing)
                continue
            work.unpruned |= {at: unpruned[at] for at in work.batch.positions if at in unpruned}
            if not missing[0].unpruned:
                answering.compute_reference(work)
            for item in missing:
                self.results.append(answering.answer(item, work))
                finished += 1
                self.progress(item.key, finished, total)

    def _read(self, answering: Answering, batches: Batches, number: int, unanswered: bool) -> BatchInWork | None:
        """Read a batch. Samples that the unpruned model cannot answer are left out before any method answers them.

        Args:
            answering: The model.
            batches: The samples.
            number: Number of the batch.
            unanswered: Whether the unpruned model has not answered it yet.
        """
        while (batch := batches.read(number, answering.loaded, self.results)) is not None:
            work = BatchInWork(batch)
            without = answering.without_answer(work) if unanswered else {}
            if not without:
                return work
            batches.leave_out(without, self.results)
        return None

    def _earlier_answers(self) -> dict[int, str]:
        """The unpruned model's answers that are in the folder, by position."""
        return {row["position"]: row["prediction"] for row in self.results.rows() if row["series"] == UNPRUNED}

    def _time(self, answering: Answering, batches: Batches) -> dict[str, list[float]]:
        for number in batches.numbers:
            batch = batches.read(number, answering.loaded, self.results)
            if batch is not None:
                ratios = answering.time(self.series, batch, self._show_rounds)
                self.results.write_json("timing.json", self.results.read_mapping("timing.json") | ratios)
                return ratios
        raise OutputError("no sample could be used", "see skipped.jsonl")

    def _show_tune(self, name: str, done: int, total: int) -> None:
        self.progress(f"tune: {name}", done, total)

    def _show_rounds(self, done: int) -> None:
        self.progress("timing", done, self.config.timing + 1)
