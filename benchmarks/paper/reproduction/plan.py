"""What a table measures, as its YAML file says it: a model, benchmarks, methods and budgets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from tokenprune.budgets.stated import STATED
from tokenprune.config import Config
from tokenprune.errors import ConfigError

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parents[1]
TABLES = HERE / "tables"
Scalar = str | int | float | bool


class Benchmark(Config):
    """One benchmark, as a task of lmms-eval 0.7.3.

    Attributes:
        task: Name of the task, or of a group whose tasks are averaged.
        metric: Key of the score in the results JSON: metric and filter.
        scale: The score times this is the number of the table.
        samples: Number of questions.
        samples_source: Where that number is stated.
        text_tokens: Text tokens of a prompt; an assumption, for estimates only.
        answer_tokens: Tokens of an answer; an assumption, for estimates only.
        judge: Whether lmms-eval asks a judge, for which it needs ``OPENAI_API_KEY``.
        model_args: Further arguments of the model that the task needs.
        note: What differs from the figures that papers print.
    """

    task: str
    metric: str
    scale: float = Field(1, gt=0)
    samples: PositiveInt
    samples_source: str = Field(min_length=1)
    text_tokens: PositiveInt
    answer_tokens: PositiveInt
    judge: bool = False
    model_args: dict[str, Scalar] = Field(default_factory=dict)
    note: str = ""


class Catalogue(Config):
    """All benchmarks by the name that tables use."""

    benchmarks: dict[str, Benchmark]


class Entry(Config):
    """A method that runs at every budget of the table.

    Attributes:
        name: A named method, ``downsampled``, or a YAML file beside this folder's tables.
        seeds: One row for each of them; none for a method without random numbers.
        settings: ``published``: those that the authors published for this model, where there are some, with the
            table's budget. ``own``: the method's own.
        calibrated: Whether the method measures the model on the pictures of ``--calibration``.
    """

    name: str = Field(min_length=1)
    seeds: tuple[int, ...] = ()
    settings: Literal["published", "own"] = "published"
    calibrated: bool = False


class Also(Config):
    """A further row: a method at a budget of its own."""

    method: Entry
    budget: dict[str, int | float]

    @model_validator(mode="after")
    def _stated(self) -> Self:
        _check_budget(self.budget)
        return self


class Table(Config):
    """One table.

    Attributes:
        title: Its heading.
        paper: What of it is in the paper, and how that is known.
        checkpoint: Name on the hub.
        architecture: Name of the architecture in :mod:`reproduction.architecture`, for estimates without weights.
        visual_tokens: Visual tokens of one sample, for estimates; a fact for models whose pictures have one size.
        visual_note: Where that number comes from.
        batch_size: Samples that are answered together.
        model_args: Further arguments of the model for every job.
        benchmarks: Names in ``benchmarks.yaml``.
        budgets: The budgets that all methods have, each one keyword of ``tokenprune.load_method`` with its number.
        methods: The methods that run at each of these.
        also: Further rows.
        published: Methods that also run at every budget that their authors published for this model.
    """

    title: str
    paper: str
    checkpoint: str
    architecture: str
    visual_tokens: PositiveInt
    visual_note: str = Field(min_length=1)
    batch_size: PositiveInt
    model_args: dict[str, Scalar] = Field(default_factory=dict)
    benchmarks: tuple[str, ...] = Field(min_length=1)
    budgets: tuple[dict[str, int | float], ...] = Field(min_length=1)
    methods: tuple[Entry, ...] = Field(min_length=1)
    also: tuple[Also, ...] = ()
    published: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _clear(self) -> Self:
        for budget in self.budgets:
            _check_budget(budget)
        for what, names in (("benchmarks", self.benchmarks), ("published", self.published)):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"{what} names {repeated[0]!r} twice")
        return self


def _check_budget(budget: Mapping[str, int | float]) -> None:
    usable = [item.keyword for item in STATED.values() if not item.measured]
    if len(budget) != 1 or not set(budget) <= set(usable):
        raise ValueError(f"a budget is one of {', '.join(usable)} with its number, got {dict(budget)}")


def table_names() -> list[str]:
    """The names of all tables."""
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


def read_catalogue() -> dict[str, Benchmark]:
    """All benchmarks; errors as for :meth:`tokenprune.config.Config.from_yaml`."""
    return Catalogue.from_yaml(HERE / "benchmarks.yaml").benchmarks


def read_table(name: str) -> Table:
    """The table of a name.

    Raises:
        ConfigError: There is no such table, its file is wrong, or it names a benchmark that does not exist.
    """
    if name not in table_names():
        raise ConfigError(f"there is no table {name!r}", f"there are {', '.join(table_names())}")
    table = Table.from_yaml(TABLES / f"{name}.yaml")
    known = read_catalogue()
    for benchmark in table.benchmarks:
        if benchmark not in known:
            raise ConfigError(f"table {name!r}: there is no benchmark {benchmark!r}", f"there are {', '.join(known)}")
    return table
