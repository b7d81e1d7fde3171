"""The configuration of an experiment: a model, a task, methods, budgets and an output folder."""

import inspect
import json
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tokenprune.budgets.base import Budget
from tokenprune.budgets.label import budget_label
from tokenprune.config import Method
from tokenprune.core.component import Component, FromRegistry
from tokenprune.core.references import DOWNSAMPLED, ORACLE, UNPRUNED
from tokenprune.errors import ConfigError, within
from tokenprune.experiment.series import Downsampled, Series, fits
from tokenprune.experiment.tuned import TUNED, Tune, TuneSettings, costs_the_same
from tokenprune.methods.named import find_shipped, method_names
from tokenprune.methods.published import Published
from tokenprune.models.base import ModelSpec
from tokenprune.tuning.run_config import CandidateEntry, MayDiffer, MethodName, OutputPath, RunConfig, as_entries


class MethodEntry(CandidateEntry):
    """One entry of ``methods``: a named method, one defined by ``layers`` and ``pruner``, or one that a tune finds.

    Attributes:
        name: ``tuned`` is the method that a tune on the task's calibration samples finds for each of the
            experiment's budgets. ``downsampled`` is the unpruned model on smaller pictures, with as many visual tokens
            as each budget leaves before the first layer.
        published: Use the settings that the named method's authors published for a model: true for the experiment's
            model, or the name of a model in the method's file. ``layers`` and ``pruner`` replace them; the budget
            is always the experiment's.
        seeds: Run the method once per seed; only for methods that use random numbers. None runs it once.
        tune: How the tune of ``tuned`` goes.
    """

    more_names: ClassVar[tuple[str, ...]] = (TUNED, DOWNSAMPLED)

    name: Annotated[str, MethodName(more=more_names)] | None = None
    published: bool | Annotated[str, Field(min_length=1)] = False
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    tune: TuneSettings | None = None

    @field_validator("label")
    @classmethod
    def _not_reserved(cls, label: str | None) -> str | None:
        if label is not None and label.lower() == UNPRUNED:
            raise ValueError("the label of the unpruned model, which is always measured, is taken: choose another")
        if label is not None and label.lower() == DOWNSAMPLED:
            raise ValueError(f"the label {DOWNSAMPLED!r} is that of smaller pictures: choose another")
        return label

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, seeds: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if seeds is not None and len(set(seeds)) < len(seeds):
            raise ValueError("every seed runs once: remove the repeated ones")
        return seeds

    @model_validator(mode="after")
    def _names_are_clear(self) -> Self:
        if self.name is None and self.published is not False:
            raise ValueError("published settings belong to a named method: give its name, or remove published")
        if self.name in self.more_names and self.name in method_names():
            raise ValueError(
                f"{self.name!r} has a meaning of its own, and an installed plugin ships a method of that name"
            )
        return self

    @model_validator(mode="after")
    def _tuned_or_stated(self) -> Self:
        if self.name != TUNED:
            if self.tune is not None:
                raise ValueError(f"'tune' is for the method {TUNED!r}: remove it, or set name to {TUNED}")
            return self
        fields = ("published", "seeds", "layers", "pruner", "positions", "cut_earlier_caches")
        wrong = [name for name in fields if getattr(self, name) != type(self).model_fields[name].default]
        if wrong:
            raise ValueError(f"the tune chooses the method {TUNED!r} whole: remove {', '.join(wrong)}")
        return self

    @model_validator(mode="after")
    def _downsampled_alone(self) -> Self:
        if self.name == DOWNSAMPLED:
            names = ("published", "seeds", "layers", "pruner", "positions", "label", "tune")
            wrong = [name for name in names if getattr(self, name) not in (None, False)]
            if wrong:
                raise ValueError(f"{DOWNSAMPLED!r} prunes nothing and is always called that: remove {', '.join(wrong)}")
        return self

    def published_settings(self, model: ModelSpec) -> Published | None:
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
        batch_size: Questions per batch. It affects the results by rounding, because a batch is padded to its longest
            prompt. A stopped run may go on with another one.
        max_new_tokens: Tokens generated per answer.
        calibration: Number of the task's calibration samples, each of another picture, that layer selectors measure.
        timing: Rounds of paired prefill timings; 0 measures no times.
        examples: Samples whose kept patches the report shows: those whose answers most methods changed. Every method
            prunes them once more; 0 for none.
        divergence: Also measure the mean divergence from the unpruned model over the tokens of its own answers. It
            needs no labels, and about doubles the time.
        strict: Make a sample that cannot be used an error. By default it is reported and left out.
    """

    methods: Annotated[
        tuple[Annotated[MethodEntry, MethodName(alone=True, more=MethodEntry.more_names)], ...],
        BeforeValidator(as_entries),
        MayDiffer(),
    ] = Field(min_length=1)
    budgets: Annotated[tuple[Annotated[Budget, FromRegistry("budgets")], ...], MayDiffer()] = Field(min_length=1)
    output: OutputPath = Field(min_length=1)
    oracle: Annotated[bool, MayDiffer()] = True
    batch_size: Annotated[int, MayDiffer()] = Field(default=8, ge=1)
    max_new_tokens: int = Field(default=4, ge=1)
    calibration: int = Field(default=8, ge=0)
    timing: int = Field(default=5, ge=0)
    examples: Annotated[int, MayDiffer()] = Field(default=10, ge=0)
    divergence: bool = False
    strict: Annotated[bool, MayDiffer()] = False

    @field_validator("budgets")
    @classmethod
    def _each_budget_once(cls, budgets: tuple[Budget, ...]) -> tuple[Budget, ...]:
        names = [budget_label(budget) for budget in budgets]
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
            unequal = [budget_label(budget) for budget in self.budgets if not costs_the_same(budget)]
            if unequal:
                raise ValueError(
                    f"the method {TUNED!r} compares candidates of equal cost, and with the budget '{unequal[0]}' they"
                    " differ: use layer_average or flops_reduction"
                )
        return self

    @model_validator(mode="after")
    def _downsampled_to_a_number(self) -> Self:
        if any(entry.name == DOWNSAMPLED for entry in self.methods):
            unfit = [budget_label(budget) for budget in self.budgets if not fits(budget)]
            if unfit:
                raise ValueError(
                    f"{DOWNSAMPLED!r} needs a budget that states one number of tokens, and '{unfit[0]}' does not: use"
                    " keep_ratio, keep_count, layer_average or flops_reduction"
                )
        return self

    def series(self) -> Iterator[Series]:
        """All series of the experiment, the unpruned model first."""
        yield Series(UNPRUNED, None, None, None)
        entries = list(self.methods)
        if self.oracle and ORACLE not in [entry.title for entry in entries]:
            entries.append(MethodEntry(name=ORACLE))
        published = {}
        for entry in entries:
            with within(f"method {entry.title!r}"):
                published[entry.title] = entry.published_settings(self.model)
        for budget in self.budgets:
            for entry in entries:
                settings = published[entry.title]
                if entry.name == TUNED:
                    tune = Tune(settings=entry.tune or TuneSettings(), budget=budget)
                    yield Series(entry.title, None, None, budget_label(budget), tune=tune)
                    continue
                if entry.name == DOWNSAMPLED:
                    smaller = Downsampled(budget=budget)
                    yield Series(entry.title, None, None, budget_label(budget), downsampled=smaller)
                    continue
                for seed in entry.seeds or (None,):
                    with within(f"method {entry.title!r}"):
                        method = entry.method(budget, settings)
                    method = method if seed is None else reseed(method, seed)
                    yield Series(
                        entry.title, method, seed, budget_label(budget), settings.sentence if settings else None
                    )


def json_schema() -> str:
    """The JSON schema of experiment files, for editors. It knows the names of what is installed, and no others."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **ExperimentConfig.model_json_schema()}
    for cls in (MethodEntry, TuneSettings):  # editors show the texts of inherited fields, too
        texts = (inspect.getdoc(described) or "" for described in (cls, *cls.__bases__))
        schema["$defs"][cls.__name__]["description"] = "\n\n".join(texts)
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
