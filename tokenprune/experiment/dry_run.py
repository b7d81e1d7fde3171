"""A dry run of an experiment: its first batch is answered and thrown away, which says about how long all would take."""

from dataclasses import dataclass, field
from functools import partial

from tokenprune.core.clock import timed
from tokenprune.core.forward_errors import release
from tokenprune.core.references import ORACLE
from tokenprune.errors import ConfigError
from tokenprune.experiment.answering import Answering, BatchInWork
from tokenprune.experiment.asking import Asking
from tokenprune.experiment.batches import Batches
from tokenprune.experiment.checks import check_series
from tokenprune.experiment.choosing import choose_series_layers, try_out, tune_series
from tokenprune.experiment.config import ExperimentConfig
from tokenprune.experiment.losses import Losses
from tokenprune.experiment.part import Part, chosen_series, select_batches
from tokenprune.experiment.results import Results
from tokenprune.experiment.runner import asks_for_oracle, published_settings
from tokenprune.experiment.series import Series, definitions
from tokenprune.experiment.series_model import why_no_foreground
from tokenprune.experiment.tuned import TUNED
from tokenprune.models.code import used_code
from tokenprune.tasks.trial import try_task
from tokenprune.tasks.understood import Understood, understand


@dataclass(frozen=True)
class PlannedSeries:
    """The part of one series.

    Attributes:
        key: The series.
        layers: The layers before which it drops tokens; empty for the unpruned model.
        batches: Batches that have not been answered.
        forwards: Forwards of these at most: a prefill and the following tokens of each batch.
        seconds: About how long they take.
    """

    key: str
    layers: tuple[int, ...]
    batches: int
    forwards: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The work that an experiment would do.

    Attributes:
        questions: Questions that are asked.
        batch_size: Questions in the batch that was timed.
        series: Every series, the unpruned model first.
        timing_seconds: About how long the prefill timings take.
        example_seconds: About how long the examples of the report take.
        settings: Name of every method with published settings -> for which model, and where they stand.
        tunes: Series key -> the tune that would first choose its method: its samples, and about how many seconds each
            of its candidates takes at most. They are not in :attr:`seconds`, and its batches count as the unpruned
            model's.
        understood: The first samples as they are understood, and those that are left out.
    """

    questions: int
    batch_size: int
    series: tuple[PlannedSeries, ...]
    timing_seconds: float
    example_seconds: float = 0.0
    settings: dict[str, str] = field(default_factory=dict)
    tunes: dict[str, tuple[int, float]] = field(default_factory=dict)
    understood: Understood | None = None

    @property
    def seconds(self) -> float:
        """About how long everything takes, without loading the model and without tunes."""
        return sum(item.seconds for item in self.series) + self.timing_seconds + self.example_seconds


def plan_experiment(config: ExperimentConfig, part: Part | None = None) -> Plan:
    """Find out what :func:`tokenprune.run_experiment` would run with the same arguments. Nothing is written.

    Raises:
        TokenPruneError: The configuration is wrong, or a method cannot run.
    """
    part = part or Part()
    series = chosen_series(config, part)
    results = Results(config.output)
    batches = select_batches(config, part)
    results.check_settings(config.settings(), config.free())
    results.check_definitions(definitions(series))
    done = results.complete(batches.count, batches.size)[0]
    answering = Answering(config, config.model.load())
    results.check_origin(answering.origin(used_code(config.model, config.task)))
    known = check_series(answering, series)
    first = batches.first(answering.loaded, answering.check_usable)
    try_task(config.task, first.samples[0])
    if why_no_foreground(first.samples[0], answering.loaded) is not None and not asks_for_oracle(config, part):
        series = [item for item in series if item.method_name != ORACLE]
    earlier = results.read_mapping("choices.json")
    ready = [item for item in series if item.tune is None or TUNED in earlier.get(item.key, ())]
    choices = choose_series_layers(answering, ready, len(first.samples[0].images), known)
    for item in ready:
        if item.tune is not None:
            choices[item.key] = tune_series(answering, item, results.folder, earlier[item.key])
    try_out(answering, ready, first)
    asking = Asking(answering, batches, None, Losses().count)
    works = _first_batch(batches, asking)
    planned, prefills = [], 0.0
    tunes: dict[str, tuple[int, float]] = {}
    for item in series:
        stand_in = item if item in ready else series[0]
        if stand_in.unpruned:  # perhaps for another series: it is timed again
            for work in works:
                work.generated = None
        _, ms = timed(answering.loaded.model.device, partial(asking.answer, stand_in, works))
        missing = sum((item.key, number) not in done for number in batches.numbers)
        steps = config.max_new_tokens * (2 if config.divergence else 1)
        layers = tuple(choices[item.key]["layers"]) if item.key in choices else ()
        planned.append(PlannedSeries(item.key, layers, missing, missing * steps, missing * ms / 1e3))
        prefill = sum(_prefill_seconds(answering, stand_in, work) for work in works)
        prefills += prefill
        if item.tune is not None and item not in ready:
            samples = item.tune.settings.samples
            tunes[item.key] = samples, prefill * samples / _size(works)
    rounds = config.timing + 1 if config.timing else 0
    settings = published_settings(series)
    size = _size(works)
    understood = understand(config.task, limit=batches.count)
    shown = min(config.examples, batches.count) * prefills / size  # one sample at a time
    return Plan(batches.count, size, tuple(planned), rounds * prefills, shown, settings, tunes, understood)


def _first_batch(batches: Batches, asking: Asking) -> list[BatchInWork]:
    for number in batches.numbers:
        works = asking.read(number, {})
        if works:
            return works
    raise ConfigError("no sample of this part can be used", "see the samples, or raise --limit")


def _prefill_seconds(answering: Answering, item: Series, work: BatchInWork) -> float:
    """Seconds of the prefill of a batch, or of its samples one by one where the batch has failed."""
    try:
        return answering.prefill_seconds(item, work.batch)
    except Exception as error:
        if not work.alone:
            raise
        release(error)
    return sum(answering.prefill_seconds(item, single.batch) for single in work.alone)


def _size(works: list[BatchInWork]) -> int:
    return max(1, sum(len(work.batch.samples) for work in works))
