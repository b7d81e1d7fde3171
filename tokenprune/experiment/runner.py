"""Running an experiment: every series answers every sample. A stopped run can be continued at any time."""

from __future__ import annotations

import warnings
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenprune.core.clock import environment
from tokenprune.core.component_errors import component_errors
from tokenprune.core.forward_errors import release
from tokenprune.core.notebook import progress_in_notebooks
from tokenprune.core.references import ORACLE, UNPRUNED
from tokenprune.core.registry import suggest
from tokenprune.errors import ConfigError, ForwardError, OutputError, TokenPruneWarning
from tokenprune.experiment import examples
from tokenprune.experiment.answering import Answering
from tokenprune.experiment.answers import Answers
from tokenprune.experiment.asking import Asking
from tokenprune.experiment.batches import Batch, Batches, Shard, several_sizes
from tokenprune.experiment.checks import check_series
from tokenprune.experiment.choosing import Choices, choose_series_layers, try_out, tune_series
from tokenprune.experiment.config import ExperimentConfig
from tokenprune.experiment.losses import Losses
from tokenprune.experiment.result import ExperimentResult
from tokenprune.experiment.results import RUN, Results, own_settings_unused
from tokenprune.experiment.series import Series, definitions
from tokenprune.experiment.series_model import why_no_foreground
from tokenprune.experiment.shown import ShownResult
from tokenprune.fingerprint.origin import Origin
from tokenprune.models.answer import set_aside
from tokenprune.models.code import used_code
from tokenprune.tasks.trial import try_task
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
    with component_errors("tasks", config.task, "samples()"):
        samples = config.task.samples()
        there = len(samples)
    if not there:
        raise ConfigError("the task has no samples", "check its settings")
    count = min(there, part.limit or there)
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


def check_settings(config: ExperimentConfig, part: Part, results: Results) -> None:
    """Check that the settings of an experiment are those of its folder, but for those that may differ.

    Raises:
        OutputError: They are not.
    """
    if part.shard is None:
        results.check_settings(config.settings(), config.free())
    else:
        why = "shards divide the samples by their batches: run all with one batch_size"
        results.check_settings(config.settings(), config.free() - {"batch_size"}, why)


class _Experiment:
    """One run of an experiment, inside the lock of its folder."""

    def __init__(self, config: ExperimentConfig, part: Part, results: Results, progress: Progress | None) -> None:
        self.config, self.part, self.results = config, part, results
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
            known = check_series(answering, self.series)
            first = batches.first(answering.loaded, answering.check_usable)
            try_task(self.config.task, first.samples[0])
            reason = why_no_foreground(first.samples[0], answering.loaded)
            if reason is not None and not self.asked_for_oracle and self.config.oracle:
                left_out = {ORACLE: reason}
                self._leave_out(left_out)
            choices = choices | self._choose(answering, first, choices, known)
            results.claim(self.config.settings(), origin, self._definitions())
            results.write_json("choices.json", choices)
            results.write_json("fingerprints.json", self.config.task.fingerprints())
            results.write_json("environment.json", environment(answering.loaded.model.device))
            results.write_json("left_out.json", left_out)
            batches.tidy(results)
            self._add_size(batches.size)
            self._store(batches)
            self._answer(answering, batches, done)
            if self.rounds:
                timing = timing | self._time(answering, batches)
        else:
            batches.tidy(results)
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
            (*several_sizes(self.sizes), *own_settings_unused(self.set_aside)),
        )

    def _load(self) -> tuple[Answering, Origin]:
        """Load the model, unless it is another one than that of the folder's answers."""
        answering = Answering(self.config, self.config.model.load())
        self.set_aside = set_aside(answering.loaded)
        origin = answering.origin(self.code)
        self.results.check_origin(origin)
        return answering, origin

    def _store(self, batches: Batches) -> None:
        """Write what a result needs beside its rows, for :func:`tokenprune.experiment.folder.read_result`."""
        stored = {
            "series": [item.key for item in self.series],
            "limit": batches.count,
            "questions": sum(len(batches.positions(number)) for number in batches.numbers),
            "label_free": self.config.task.label_free,
            "settings": published_settings(self.series),
            "batch_sizes": self.sizes,
            "set_aside": self.set_aside,
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
                known = check_series(answering, self.series)
                self._choose(answering, batches.first(answering.loaded), choices, known)
            found, reason = examples.capture(answering, batches, self.series, positions, self._show_examples)
        examples.write(self.results, found, positions, reason)

    def _show_examples(self, done: int, total: int) -> None:
        self.progress("examples", done, total)

    def _choose(self, answering: Answering, first: Batch, earlier: Choices, known: Container[str]) -> Choices:
        """Choose layers, and try every series out: first what takes no time, then what calibrates, and at last tunes.

        Args:
            answering: The model; it gets the methods.
            first: A sample that it can answer.
            earlier: The choices of earlier runs.
            known: Keys of the series whose layers need no calibration.
        """
        images = len(first.samples[0].images)
        stated = [item for item in self.series if item.tune is None]
        quick = [item for item in stated if item.unpruned or item.key in known]
        choices = choose_series_layers(answering, quick, images, known)
        try_out(answering, quick, first)
        slow = [item for item in stated if item not in quick]
        choices |= choose_series_layers(answering, slow, images)
        try_out(answering, slow, first)
        tuned = [item for item in self.series if item.tune is not None]
        for item in tuned:
            choices[item.key] = tune_series(
                answering, item, self.results.folder, earlier.get(item.key), self._show_tune
            )
        try_out(answering, tuned, first)
        return {item.key: choices[item.key] for item in self.series if item.key in choices}

    def is_finished(self) -> bool:
        """Whether everything has been answered and timed."""
        _, batches, done = self._resume()
        choices = self.results.read_mapping("choices.json")
        return self._finished(batches, done, choices, self.results.read_mapping("timing.json"))

    def _resume(self) -> tuple[dict[str, str], Batches, set[tuple[str, int]]]:
        """Take up what the folder holds: methods left out, the samples, and what has been answered."""
        check_settings(self.config, self.part, self.results)
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
            if any(position not in batches.skipped for position in batches.positions(number)):
                yield number

    def _answer(self, answering: Answering, batches: Batches, done: set[tuple[str, int]]) -> None:
        """Answer all batches that are not done.

        The loop goes batch by batch over all series, so that the series of a stopped run cover the same samples.
        """
        total = len(self.series) * len(batches.numbers)
        finished = sum((item.key, number) in done for item in self.series for number in batches.numbers)
        unpruned = self._earlier_answers() if self.config.task.label_free else {}
        asking = Asking(answering, batches, self.results, self._losses(batches, done))
        for number in batches.numbers:
            missing = [item for item in self.series if (item.key, number) not in done]
            if not missing:
                continue
            works = asking.read(number, {at: unpruned[at] for at in batches.positions(number) if at in unpruned})
            for item in missing:
                if works:  # until the last of its samples is left out
                    self.results.append(asking.answer(item, works))
                finished += 1
                self.progress(item.key, finished, total)

    def _losses(self, batches: Batches, done: set[tuple[str, int]]) -> Losses:
        """The samples that earlier runs asked, and those that they left out because a method failed on them."""
        asked = sum(len(batches.positions(number)) for number in batches.numbers if (UNPRUNED, number) in done)
        return Losses(asked, sum("series" in row for row in self.results.skipped_rows()))

    def _earlier_answers(self) -> dict[int, str]:
        """The unpruned model's answers that are in the folder, by position."""
        return {row["position"]: row["prediction"] for row in self.results.rows() if row["series"] == UNPRUNED}

    def _time(self, answering: Answering, batches: Batches) -> dict[str, list[float]]:
        """Time the first batch that every method can run; one that fails is timed by its first sample."""
        for number in batches.numbers:
            for batch in batches.read(number, answering.loaded, self.results):
                try:
                    ratios = answering.time(self.series, batch, self._show_rounds)
                except ForwardError as error:
                    if len(batch.positions) == 1:
                        raise
                    release(error)
                    batch = batches.alone(batch.positions[0], answering.loaded)
                    ratios = answering.time(self.series, batch, self._show_rounds)
                self.results.write_json("timing.json", self.results.read_mapping("timing.json") | ratios)
                return ratios
        raise OutputError("no sample could be used", "see skipped.jsonl")

    def _show_tune(self, name: str, done: int, total: int) -> None:
        self.progress(f"tune: {name}", done, total)

    def _show_rounds(self, done: int) -> None:
        self.progress("timing", done, self.config.timing + 1)
