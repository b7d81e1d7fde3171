"""A part of an experiment: its series, its samples and its folder."""

from dataclasses import dataclass

from tokenprune.core.component_errors import component_errors
from tokenprune.core.references import UNPRUNED
from tokenprune.core.registry import suggest
from tokenprune.errors import ConfigError
from tokenprune.experiment.batches import Batches
from tokenprune.experiment.config import ExperimentConfig
from tokenprune.experiment.series import Series


@dataclass(frozen=True)
class Part:
    """A part of an experiment.

    Attributes:
        limit: Only the first so many samples.
        only: Only the methods with these names in tables, and the unpruned model.

    Raises:
        ConfigError: The limit is below 1.
    """

    limit: int | None = None
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit {self.limit} uses no sample", "give 1 or more")


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


def select_batches(config: ExperimentConfig, part: Part) -> Batches:
    """The batches of a part of an experiment.

    Raises:
        ConfigError: The task has no samples.
    """
    with component_errors("tasks", config.task, "samples()"):
        samples = config.task.samples()
        there = len(samples)
    if not there:
        raise ConfigError("the task has no samples", "check its settings")
    count = min(there, part.limit or there)
    return Batches(samples, count, config.batch_size, config.strict)
