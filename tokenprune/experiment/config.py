"""The configuration of an experiment: a model, a task, methods, budgets and an output folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tokenprune.budgets.base import Budget
from tokenprune.budgets.slug import slug
from tokenprune.config import Label, Method, OutputPath, Positions, RunConfig, as_entries
from tokenprune.core.component import Component, FromRegistry
from tokenprune.errors import ConfigError, TokenPruneError
from tokenprune.experiment.method_name import MethodName, check_name
from tokenprune.experiment.series import Series
from tokenprune.experiment.tuned import TUNED, Tune, TuneSettings, costs_the_same
from tokenprune.methods.named import find_shipped, is_file_name, load_method, method_names
from tokenprune.methods.published import Published
from tokenprune.models.base import ModelSpec
from tokenprune.pruners.base import Pruner
from tokenprune.selectors.base import LayerSelector
from tokenprune.tasks.base import Task

#: The title of the series without a method.
UNPRUNED = "unpruned"


class MethodEntry(Component):
    """One entry of ``methods``: a named method, one defined by ``layers`` and ``pruner``, or one that a tune finds.

    Attributes:
        name: Name of a named method, or the path of a YAML file with a method, e.g. one that ``tokenprune tune`` wrote.
            ``tuned`` is the method that a tune on the task's training split finds for each of the experiment's budgets.
        published: Use the settings that the named method's authors published for a model: true for the experiment's
            model, or the name of a model in the method's file. ``layers`` and ``pruner`` below replace them; the budget
            is always the experiment's.
        seeds: Run the method once per seed; only for methods that use random numbers. None runs it once.
        layers: Layer selector; replaces the named method's.
        pruner: Pruner; replaces the named method's.
        positions: ``original`` or ``renumbered``, see :class:`tokenprune.Method`; replaces the named method's.
        label: Name in tables; by default the method's name, or that of its file.
        tune: How the tune of ``tuned`` goes.
    """

    name: Annotated[str, MethodName(more=(TUNED,))] | None = None
    published: bool | Annotated[str, Field(min_length=1)] = False
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    layers: Annotated[LayerSelector, FromRegistry("selectors")] | None = None
    pruner: Annotated[Pruner, FromRegistry("pruners")] | None = None
    positions: Positions | None = None
    label: Label | None = None
    tune: TuneSettings | None = None

    @field_validator("label")
    @classmethod
    def _not_reserved(cls, label: str | None) -> str | None:
        if label is not None and label.lower() == UNPRUNED:
            raise ValueError("the label of the unpruned model, which is always measured, is taken: choose another")
        return label

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, seeds: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if seeds is not None and len(set(seeds)) < len(seeds):
            raise ValueError("every seed runs once: remove the repeated ones")
        return seeds

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.name is None and (self.layers is None or self.pruner is None or self.label is None):
            raise ValueError("a method needs a name, or layers, pruner and label")
        if self.name is None and self.published is not False:
            raise ValueError("published settings belong to a named method: give its name, or remove published")
        if self.name is not None:
            check_name(self.name, (TUNED,))
        if self.name == TUNED and TUNED in method_names():
            raise ValueError(f"{TUNED!r} is the name of the tuned method, and an installed plugin ships another of it")
        return self

    @model_validator(mode="after")
    def _tuned_or_stated(self) -> Self:
        if self.name != TUNED:
            if self.tune is not None:
                raise ValueError(f"'tune' is for the method {TUNED!r}: remove it, or set name to {TUNED}")
            return self
        stated = {name: getattr(self, name) for name in ("published", "seeds", "layers", "pruner", "positions")}
        wrong = [name for name, value in stated.items() if value not in (None, False)]
        if wrong:
            raise ValueError(f"the tune chooses the method {TUNED!r} whole: remove {', '.join(wrong)}")
        return self

    @property
    def title(self) -> str:
        """The name of the method in tables."""
        if self.label is None and self.name is not None and is_file_name(self.name):
            return Path(self.name).stem
        return self.label or self.name or "method"

    def settings(self, model: ModelSpec) -> Published | None:
        """The published settings that the entry asks for; None if it asks for none.

        Args:
            model: The experiment's model.

        Raises:
            ConfigError: Nothing was published for this model, or its config cannot be read without loading it.
        """
        if self.name is None or self.published is False:
            return None
        wanted = model.read_config() if self.published is True else self.published
        return find_shipped(self.name).settings_for(wanted)

    def method(self, budget: Budget, settings: Published | None = None) -> Method:
        """The method with the given budget, and with published settings if they are given."""
        model = settings.model if settings is not None else None
        named = load_method(self.name, model=model) if self.name is not None else None
        layers = self.layers or (named.layers if named else None)
        pruner = self.pruner or (named.pruner if named else None)
        assert layers is not None
        assert pruner is not None
        positions = self.positions or (named.positions if named else "original")
        return Method(
            layers=layers,
            pruner=pruner,
            budget=budget,
            positions=positions,
            label=self.title,
            tuned_for=named.tuned_for if named else None,
        )


class ExperimentConfig(RunConfig):
    """Every method with every budget on a task.

    Attributes:
        requires: Distributions that the experiment's components come from, each with how to install it. Checked first,
            so that an experiment says what is missing instead of which names are unknown.
        model: The model.
        task: The questions and the rule for correct answers.
        methods: The methods. The unpruned model is always measured, too.
        budgets: Every method runs with each of them.
        output: Folder of the results. An unfinished experiment in it is continued.
        oracle: Add the method that keeps the task's true foreground, as an upper bound.
        batch_size: Questions per batch. It affects the results, because a batch is padded to its longest prompt.
        max_new_tokens: Tokens generated per answer.
        calibration: Number of pictures of the task's training split that layer selectors calibrate with.
        timing: Rounds of paired prefill timings; 0 measures no times.
        examples: Samples whose kept patches the report shows: those whose answers most methods changed. Every method
            prunes them once more; 0 for none.
        divergence: Also measure the mean divergence from the unpruned model over the tokens of its own answers. It
            needs no labels, and about doubles the time.
        strict: Make a sample that cannot be used an error. By default it is reported and left out.
    """

    model: Annotated[ModelSpec, FromRegistry("models")]
    task: Annotated[Task, FromRegistry("tasks")]
    methods: Annotated[
        tuple[Annotated[MethodEntry, MethodName(alone=True, more=(TUNED,))], ...], BeforeValidator(as_entries)
    ] = Field(min_length=1)
    budgets: tuple[Annotated[Budget, FromRegistry("budgets")], ...] = Field(min_length=1)
    output: OutputPath = Field(min_length=1)
    oracle: bool = True
    batch_size: int = Field(default=8, ge=1)
    max_new_tokens: int = Field(default=4, ge=1)
    calibration: int = Field(default=8, ge=0)
    timing: int = Field(default=5, ge=0)
    examples: int = Field(default=10, ge=0)
    divergence: bool = False
    strict: bool = False

    @field_validator("budgets")
    @classmethod
    def _each_budget_once(cls, budgets: tuple[Budget, ...]) -> tuple[Budget, ...]:
        names = [slug(budget) for budget in budgets]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"the budget '{repeated[0]}' stands twice, and tables could not tell the two apart")
        return budgets

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        titles = [entry.title for entry in self.methods]
        repeated = sorted({title for title in titles if titles.count(title) > 1})
        if repeated:
            raise ValueError(f"methods {', '.join(repeated)} appear twice: give one of each a label")
        return self

    @model_validator(mode="after")
    def _tuned_at_equal_cost(self) -> Self:
        if any(entry.name == TUNED for entry in self.methods):
            unequal = [slug(budget) for budget in self.budgets if not costs_the_same(budget)]
            if unequal:
                raise ValueError(
                    f"the method {TUNED!r} compares candidates of equal cost, and with the budget '{unequal[0]}' they"
                    " differ: use layer_average or flops_reduction"
                )
        return self

    def series(self) -> Iterator[Series]:
        """All series of the experiment, the unpruned model first."""
        yield Series(UNPRUNED, None, None, None)
        entries = list(self.methods)
        if self.oracle and "oracle" not in [entry.title for entry in entries]:
            entries.append(MethodEntry(name="oracle"))
        published = {}
        for entry in entries:
            with _named(entry):
                published[entry.title] = entry.settings(self.model)
        for budget in self.budgets:
            for entry in entries:
                settings = published[entry.title]
                if entry.name == TUNED:
                    tune = Tune(settings=entry.tune or TuneSettings(), budget=budget)
                    yield Series(entry.title, None, None, slug(budget), tune=tune)
                    continue
                for seed in entry.seeds or (None,):
                    with _named(entry):
                        method = entry.method(budget, settings)
                    method = method if seed is None else reseed(method, seed)
                    yield Series(entry.title, method, seed, slug(budget), settings.sentence if settings else None)


@contextmanager
def _named(entry: MethodEntry) -> Iterator[None]:
    """Name the method in every error from inside the block.

    Raises:
        ConfigError: The error, with the name.
    """
    try:
        yield
    except TokenPruneError as error:
        raise ConfigError(f"method {entry.title!r}: {error}") from error


def json_schema() -> str:
    """The JSON schema of experiment files, for editors. It knows the names of what is installed, and no others."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **ExperimentConfig.model_json_schema()}
    return json.dumps(schema, indent=2)


def reseed(method: Method, seed: int) -> Method:
    """The method with another seed in every component that has a seed.

    Raises:
        ConfigError: No component of the method has a seed.
    """
    pruner, count = _reseed(method.pruner, seed)
    if not count:
        raise ConfigError(f"method {method.label!r} uses no random numbers", "remove its seeds")
    return method.model_copy(update={"pruner": pruner})


def _reseed(component: Any, seed: int) -> tuple[Any, int]:
    """The component with another seed, and how many seeds it and its parts have."""
    updates: dict[str, Any] = {"seed": seed} if "seed" in type(component).model_fields else {}
    count = len(updates)
    for name in type(component).model_fields:
        value = getattr(component, name)
        if isinstance(value, Component):
            updates[name], seeds = _reseed(value, seed)
            count += seeds
        elif isinstance(value, tuple) and value and all(isinstance(item, Component) for item in value):
            updates[name], seeds_per_item = zip(*(_reseed(item, seed) for item in value), strict=True)
            count += sum(seeds_per_item)
    return component.model_copy(update=updates), count
