"""What an experiment computes with its model: choices, answers, times, examples. In this process, or in a worker."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tokenprune.config import Method
from tokenprune.core.clock import environment
from tokenprune.core.forward_errors import release
from tokenprune.errors import ForwardError, OutputError
from tokenprune.experiment import examples
from tokenprune.experiment.answering import Answering
from tokenprune.experiment.asking import Asking
from tokenprune.experiment.batches import Batches
from tokenprune.experiment.checks import check_series
from tokenprune.experiment.choosing import Choices, choose_series_layers, try_out, tune_series
from tokenprune.experiment.config import ExperimentConfig
from tokenprune.experiment.losses import Event
from tokenprune.experiment.results import Results
from tokenprune.experiment.series import Series
from tokenprune.experiment.series_model import why_no_foreground
from tokenprune.fingerprint.origin import Origin
from tokenprune.models.answer import set_aside
from tokenprune.models.code import used_code
from tokenprune.output.lines import Row
from tokenprune.tasks.trial import try_task
from tokenprune.tuning.steps import Progress


@dataclass(frozen=True)
class Loaded:
    """What a model says of itself once it is loaded.

    Attributes:
        origin: The fingerprints of the model, and the versions of code.
        set_aside: The checkpoint's own settings of ``generate`` that answers do not use.
    """

    origin: Origin
    set_aside: dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """What is decided before the first answer.

    Attributes:
        choices: Series key -> the layers, and the reason for the choice.
        methods: Series key -> the method with these layers.
        no_foreground: Why the tokens of the foreground are unknown; None if they are known.
        environment: Versions of packages, and the machine.
    """

    choices: Choices
    methods: Mapping[str, Method]
    no_foreground: str | None
    environment: dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A batch, and the series that have not answered it.

    Attributes:
        number: Number of the batch.
        keys: The series, in their order.
        skipped: The samples of the batch that are left out: position -> why.
        unpruned: The answers of the unpruned model that are known, by position.
    """

    number: int
    keys: tuple[str, ...]
    skipped: dict[int, str] = field(default_factory=dict)
    unpruned: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answered:
    """One series has answered one batch.

    Attributes:
        number: Number of the batch.
        key: The series.
        rows: Its rows.
        skipped: Rows of the samples that were left out meanwhile; see :meth:`Results.skip`.
        events: What :class:`tokenprune.experiment.losses.Losses` counts, in order.
    """

    number: int
    key: str
    rows: Sequence[Row]
    skipped: Sequence[Row] = ()
    events: Sequence[Event] = ()


class Steps(ABC):
    """The steps of an experiment that need its model."""

    @abstractmethod
    def load(self) -> Loaded:
        """Load the model."""

    @abstractmethod
    def prepare(self, keys: Sequence[str], earlier: Choices, keep_oracle: bool, progress: Progress) -> Prepared:
        """Check every series, choose its layers, and try it out on one sample.

        Args:
            keys: The series.
            earlier: The choices of earlier runs.
            keep_oracle: Whether the upper bound is an error where the foreground is unknown; else it is left out.
            progress: Called after every step.

        Raises:
            TokenPruneError: The model, the task or a method cannot run.
        """

    @abstractmethod
    def answer(self, asked: Iterable[Asked]) -> Iterator[list[Answered]]:
        """Answer batches.

        Yields:
            What is answered, as it is there: the answers of a batch in the order of its series.

        Raises:
            TokenPruneError: Something cannot be answered.
        """

    @abstractmethod
    def time(self, keys: Sequence[str], progress: Progress) -> dict[str, list[float]]:
        """Time the first batch that every method can run; one that fails is timed by its first sample."""

    @abstractmethod
    def capture(
        self, keys: Sequence[str], positions: Sequence[int], progress: Progress
    ) -> tuple[examples.Stored, str | None]:
        """What every method keeps of some samples; see :func:`tokenprune.experiment.examples.capture`."""

    @property
    @abstractmethod
    def prepared(self) -> bool:
        """Whether :meth:`prepare` was called."""

    @abstractmethod
    def close(self) -> None:
        """End what was started."""


class OwnSteps(Steps):
    """The steps in this process.

    Args:
        config: The experiment.
        batches: Its samples.
        folder: The folder of its files, for tunes.
    """

    def __init__(self, config: ExperimentConfig, batches: Batches, folder: Results) -> None:
        self.config, self.batches, self.folder = config, batches, folder
        self.series = {item.key: item for item in config.series()}
        self._answering: Answering | None = None
        self._prepared = False

    @property
    def answering(self) -> Answering:
        """The loaded model."""
        if self._answering is None:
            self._answering = Answering(self.config, self.config.model.load())
        return self._answering

    @property
    def prepared(self) -> bool:
        """See :meth:`Steps.prepared`."""
        return self._prepared

    def load(self) -> Loaded:
        """See :meth:`Steps.load`."""
        origin = self.answering.origin(used_code(self.config.model, self.config.task))
        return Loaded(origin, set_aside(self.answering.loaded))

    def prepare(self, keys: Sequence[str], earlier: Choices, keep_oracle: bool, progress: Progress) -> Prepared:
        """See :meth:`Steps.prepare`."""
        answering, series = self.answering, self._series(keys)
        known = check_series(answering, series)
        first = self.batches.first(answering.loaded, answering.check_usable)
        try_task(self.config.task, first.samples[0])
        reason = why_no_foreground(first.samples[0], answering.loaded)
        if reason is not None and not keep_oracle:
            series = [item for item in series if not item.oracle]
        choices: Choices = {}
        images = len(first.samples[0].images)
        stated = [item for item in series if item.tune is None]
        quick = [item for item in stated if item.unpruned or item.key in known]  # what takes no time comes first
        choices |= choose_series_layers(answering, quick, images, known)
        try_out(answering, quick, first)
        slow = [item for item in stated if item not in quick]
        choices |= choose_series_layers(answering, slow, images)
        try_out(answering, slow, first)
        tuned = [item for item in series if item.tune is not None]

        def show_tune(name: str, done: int, total: int) -> None:
            progress(f"tune: {name}", done, total)

        for item in tuned:
            choices[item.key] = tune_series(answering, item, self.folder.folder, earlier.get(item.key), show_tune)
        try_out(answering, tuned, first)
        self._prepared = True
        ordered = {item.key: choices[item.key] for item in series if item.key in choices}
        return Prepared(ordered, answering.methods, reason, environment(answering.loaded.model.device))

    def adopt(self, methods: Mapping[str, Method]) -> None:
        """Take over methods that another worker has prepared."""
        self.answering.methods |= methods
        self._prepared = True

    def answer(self, asked: Iterable[Asked]) -> Iterator[list[Answered]]:
        """See :meth:`Steps.answer`."""
        for item in asked:
            for answered in self.answer_batch(item):
                yield [answered]

    def answer_batch(self, asked: Asked) -> Iterator[Answered]:
        """Answer one batch, series by series."""
        skipped, events = list[Row](), list[Event]()
        asking = Asking(self.answering, self.batches, skipped.extend, events.append)
        works = asking.read(asked.number, dict(asked.unpruned))
        for key in asked.keys:
            rows = asking.answer(self.series[key], works) if works else []  # until the last sample is left out
            yield Answered(asked.number, key, rows, tuple(skipped), tuple(events))
            skipped.clear()
            events.clear()

    def time(self, keys: Sequence[str], progress: Progress) -> dict[str, list[float]]:
        """See :meth:`Steps.time`."""
        answering, series = self.answering, self._series(keys)

        def show(done: int) -> None:
            progress("timing", done, self.config.timing + 1)

        for number in self.batches.numbers:
            for batch in self.batches.read(number, answering.loaded, None):
                try:
                    return answering.time(series, batch, show)
                except ForwardError as error:
                    if len(batch.positions) == 1:
                        raise
                    release(error)
                return answering.time(series, self.batches.alone(batch.positions[0], answering.loaded), show)
        raise OutputError("no sample could be used", "see skipped.jsonl")

    def capture(
        self, keys: Sequence[str], positions: Sequence[int], progress: Progress
    ) -> tuple[examples.Stored, str | None]:
        """See :meth:`Steps.capture`."""
        show = partial(progress, "examples")
        return examples.capture(self.answering, self.batches, self._series(keys), positions, show)

    def close(self) -> None:
        """See :meth:`Steps.close`."""

    def _series(self, keys: Sequence[str]) -> list[Series]:
        return [self.series[key] for key in keys]
