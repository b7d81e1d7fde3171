"""The configuration of a tune: a model, samples, what a candidate may cost, and the candidates."""

from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from tokenprune.core.component import Component
from tokenprune.engine.trials.race import Objective
from tokenprune.tuning.budgets import EqualCost, EqualCostBudget, cost_label
from tokenprune.tuning.run_config import CandidateEntry, MayDiffer, OutputPath, RunConfig, as_entries


class TuneRules(Component):
    """Base of what says how a tune goes, on its own or inside an experiment.

    Attributes:
        samples: How many samples, each of another picture: of a split that the task does not measure where it has
            one, else of the task's own first pictures.
        objective: What is compared with the unpruned model: ``agreement`` of the tokens, ``divergence`` of the next
            token's distributions, ``root_divergence`` (its square root per sample), or ``distance`` (total variation).
        compositions: With all named methods, also combine scorers and pruners that no named method combines.
        tokens: Tokens of the unpruned model's answer that are compared.
        error: Probability that a race drops its best candidate.
        first: Samples that all candidates see before some may leave.
        seed: Seed of the bootstrap and of random candidates.
    """

    samples: int = Field(default=64, ge=2)
    objective: Annotated[Objective, MayDiffer()] = "root_divergence"
    compositions: Annotated[bool, MayDiffer()] = True
    tokens: int = Field(default=1, ge=1)
    error: Annotated[float, MayDiffer()] = Field(default=0.05, gt=0, lt=1)
    first: Annotated[int, MayDiffer()] = Field(default=8, ge=2)
    seed: int = Field(default=0, ge=0)


class TuneConfig(TuneRules, RunConfig):
    """A search for the best method for a model, for data and for a budget; see also :class:`TuneRules`.

    Attributes:
        requires: Distributions that the components come from, each with how to install it. Checked first.
        model: The model.
        task: Where the samples come from: ``task.calibration(samples)``. Answers are not used, but with ``labels``.
        budget: What every candidate may cost: ``layer_average``, ``flops_reduction``, or ``prefill_time`` with
            ``ratio``, the measured time of the prefill as a share of the unpruned one's.
        budgets: Several of them, each with its own ranking. Give exactly one of ``budget`` and ``budgets``.
        methods: The candidates: names of named methods, or methods as in experiments; null for all named methods.
        labels: Compare the task's score of generated answers instead; the samples then need answers.
        max_new_tokens: Tokens generated per answer, with ``labels``.
        batch_size: Samples per batch.
        output: Folder of the results. An unfinished tune in it is continued.
        strict: Make a sample that cannot be used an error. By default it is reported and left out.
    """

    budget: Annotated[Annotated[EqualCost, EqualCostBudget()] | None, MayDiffer()] = None
    budgets: Annotated[tuple[Annotated[EqualCost, EqualCostBudget()], ...], MayDiffer()] = ()
    methods: Annotated[
        Annotated[tuple[CandidateEntry, ...], Field(min_length=1), BeforeValidator(as_entries)] | None, MayDiffer()
    ] = None
    labels: bool = False
    max_new_tokens: int = Field(default=4, ge=1)
    batch_size: int = Field(default=8, ge=1)
    output: OutputPath = "results/tune"
    strict: Annotated[bool, MayDiffer()] = False

    @model_validator(mode="after")
    def _one_kind_of_budget(self) -> Self:
        if (self.budget is None) != bool(self.budgets):
            raise ValueError("give exactly one of 'budget' and 'budgets'")
        names = [cost_label(budget) for budget in self.all_budgets]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"the budget '{repeated[0]}' stands twice")
        return self

    @property
    def all_budgets(self) -> tuple[EqualCost, ...]:
        """The budgets, one or several."""
        return self.budgets or ((self.budget,) if self.budget is not None else ())
