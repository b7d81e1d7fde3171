"""The configuration of a tune: a model, samples, what a candidate may cost, and the candidates."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from tokenprune.config import Label, OutputPath, Positions, RunConfig, as_entries
from tokenprune.core.component import Component, FromRegistry
from tokenprune.core.registry import suggest
from tokenprune.engine.trials.race import Objective
from tokenprune.methods.named import is_file_name, method_names
from tokenprune.models.base import ModelSpec
from tokenprune.pruners.base import Pruner
from tokenprune.selectors.base import LayerSelector
from tokenprune.tasks.base import Task
from tokenprune.tuning.budgets import EqualCost, EqualCostBudget, budget_slug


class CandidateEntry(Component):
    """One entry of ``methods``: a named method with its own small space, or a single method.

    Attributes:
        name: Name of a named method, or the path of a YAML file with a method. Alone it stands for the method and for
            the variants of it that its components declare; with ``layers``, ``pruner`` or ``positions`` for one method.
        layers: Layer selector; replaces the named method's.
        pruner: Pruner; replaces the named method's.
        positions: ``original`` or ``renumbered``, see :class:`tokenprune.Method`; replaces the named method's.
        label: Name in tables; by default the method's name.
    """

    name: str | None = None
    layers: Annotated[LayerSelector, FromRegistry("selectors")] | None = None
    pruner: Annotated[Pruner, FromRegistry("pruners")] | None = None
    positions: Positions | None = None
    label: Label | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.name is None and (self.layers is None or self.pruner is None or self.label is None):
            raise ValueError("a candidate needs a name, or layers, pruner and label")
        installed = method_names()
        if self.name is not None and self.name not in installed and not is_file_name(self.name):
            raise ValueError(f"unknown method {self.name!r}; {suggest(self.name, installed)}")
        return self

    @property
    def alone(self) -> bool:
        """Whether the entry is a name and nothing else: then the method's variants are candidates, too."""
        return self.name is not None and not any((self.layers, self.pruner, self.positions, self.label))


class TuneConfig(RunConfig):
    """Which method is best for a model, for data and for a budget.

    Attributes:
        requires: Distributions that the components come from, each with how to install it. Checked first.
        model: The model.
        task: Where the samples come from: ``task.calibration(samples)``, which is the training split where the task
            has one, and the task's own first pictures where it has none. Answers are not used, but with ``labels``.
        budget: What every candidate may cost: ``layer_average``, ``flops_reduction``, or ``prefill_time`` with
            ``ratio``, the measured time of the prefill as a share of the unpruned one's.
        budgets: Several of them, each with its own ranking. Give exactly one of ``budget`` and ``budgets``.
        methods: The candidates: names of named methods, or methods as in experiments; null for all named methods.
        compositions: With all named methods, also combine scorers and pruners that no named method combines.
        samples: How many samples, each of another picture.
        objective: What is compared with the unpruned model: ``agreement`` of the tokens, ``divergence`` of the next
            token's distributions, ``root_divergence`` (its square root per sample), or ``distance`` (total variation).
        labels: Compare the task's score of generated answers instead; the samples then need answers.
        tokens: Tokens of the unpruned model's answer that are compared.
        max_new_tokens: Tokens generated per answer, with ``labels``.
        error: Probability that a race drops its best candidate.
        first: Samples that all candidates see before some may leave.
        batch_size: Samples per batch.
        seed: Seed of the bootstrap and of random candidates.
        output: Folder of the results. An unfinished tune in it is continued.
        strict: Make a sample that cannot be used an error. By default it is reported and left out.
    """

    model: Annotated[ModelSpec, FromRegistry("models")]
    task: Annotated[Task, FromRegistry("tasks")]
    budget: Annotated[EqualCost, EqualCostBudget()] | None = None
    budgets: tuple[Annotated[EqualCost, EqualCostBudget()], ...] = ()
    methods: Annotated[tuple[CandidateEntry, ...], Field(min_length=1), BeforeValidator(as_entries)] | None = None
    compositions: bool = True
    samples: int = Field(default=64, ge=2)
    objective: Objective = "root_divergence"
    labels: bool = False
    tokens: int = Field(default=1, ge=1)
    max_new_tokens: int = Field(default=4, ge=1)
    error: float = Field(default=0.05, gt=0, lt=1)
    first: int = Field(default=8, ge=2)
    batch_size: int = Field(default=8, ge=1)
    seed: int = Field(default=0, ge=0)
    output: OutputPath = "results/tune"
    strict: bool = False

    @model_validator(mode="after")
    def _one_kind_of_budget(self) -> Self:
        if (self.budget is None) != bool(self.budgets):
            raise ValueError("give exactly one of 'budget' and 'budgets'")
        names = [budget_slug(budget) for budget in self.all_budgets]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"the budget '{repeated[0]}' stands twice")
        return self

    @property
    def all_budgets(self) -> tuple[EqualCost, ...]:
        """The budgets, one or several."""
        return self.budgets or ((self.budget,) if self.budget is not None else ())
