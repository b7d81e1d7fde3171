"""``tuned`` in an experiment: a tune on other samples of the task chooses the method for a budget."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from tokenprune.budgets.base import Budget
from tokenprune.config import Method
from tokenprune.core.component import Component, FromRegistry
from tokenprune.engine.trials.race import Objective
from tokenprune.errors import ConfigError
from tokenprune.experiment.method_name import MethodName, check_name
from tokenprune.models.base import LoadedModel, ModelSpec
from tokenprune.tasks.base import Task
from tokenprune.tuning import TuneConfig, TuneResult, run_tune
from tokenprune.tuning.budgets import EqualCost, EqualCostBudget, budget_slug
from tokenprune.tuning.steps import Progress

#: A candidate of a tune.
CandidateName = Annotated[str, MethodName(), AfterValidator(check_name)]

#: The name of an experiment's method that a tune chooses.
TUNED = "tuned"


class TuneSettings(Component):
    """How a tune of an experiment goes; everything else it has from the experiment. See :class:`TuneConfig`.

    Attributes:
        samples: How many samples, each of another picture: of the task's training split where it has one, else of the
            task's own first pictures.
        objective: What is compared with the unpruned model: ``root_divergence``, ``agreement``,
            ``divergence`` or ``distance``.
        methods: The candidates: names of named methods with their variants, or of YAML files with a method; null for
            all named methods.
        compositions: With all named methods, also combine scorers and pruners that no named method combines.
        tokens: Tokens of the unpruned model's answer that are compared.
        error: Probability that a race drops its best candidate.
        first: Samples that all candidates see before some may leave.
        seed: Seed of the bootstrap and of random candidates.
    """

    samples: int = Field(default=64, ge=2)
    objective: Objective = "root_divergence"
    methods: Annotated[tuple[CandidateName, ...], Field(min_length=1)] | None = None
    compositions: bool = True
    tokens: int = Field(default=1, ge=1)
    error: float = Field(default=0.05, gt=0, lt=1)
    first: int = Field(default=8, ge=2)
    seed: int = Field(default=0, ge=0)


class Tune(Component):
    """What decides the method of a series: the settings of a tune, and its budget.

    Attributes:
        settings: How the tune goes.
        budget: What the candidates may cost.
    """

    settings: TuneSettings
    budget: Annotated[Budget, FromRegistry("budgets")]

    def folder(self, output: Path, title: str) -> Path:
        """Where the files of the tune are.

        Args:
            output: Folder of the experiment, or of its shard.
            title: The name of the method in tables; a label of the user's is a folder of its own.
        """
        folder = output / TUNED
        if title != TUNED:
            name = re.sub(r"[^\w-]+", "-", title)
            # labels that differ in other characters only have folders of their own, too
            folder /= name if name == title else f"{name}-{zlib.crc32(title.encode()):08x}"
        return folder / budget_slug(_equal_cost(self.budget)).replace(" ", "-")

    def run(
        self,
        model: ModelSpec,
        loaded: LoadedModel,
        task: Task,
        batch_size: int,
        strict: bool,
        folder: Path,
        progress: Progress | None = None,
    ) -> TuneResult:
        """Run the tune, or go on with the one in the folder.

        Args:
            model: The experiment's model.
            loaded: The same, loaded.
            task: The experiment's task.
            batch_size: Samples per batch.
            strict: Whether a sample that cannot be used is an error.
            folder: Where its files are written.
            progress: Called after every candidate and batch.

        Raises:
            TokenPruneError: The samples or the budget do not fit the model, or no candidate can run.
        """
        config = TuneConfig(
            model=model,
            task=task,
            budget=_equal_cost(self.budget),
            batch_size=batch_size,
            strict=strict,
            output=str(folder),
            **{name: getattr(self.settings, name) for name in TuneSettings.model_fields},
        )
        return run_tune(config, progress, loaded)


def costs_the_same(budget: Budget) -> bool:
    """Whether a tune can compare candidates at a budget: it costs each of them the same."""
    try:
        _equal_cost(budget)
    except ValueError:
        return False
    return True


def _equal_cost(budget: Budget) -> EqualCost:
    return EqualCostBudget().build(budget)


def verdict(result: TuneResult) -> dict[str, Any]:
    """What a tune decided, as an experiment keeps it: the candidate's name, why, and its method; JSON-ready."""
    return {
        "name": result.best.name,
        "sentence": result.sentence,
        "method": result.method.model_dump(mode="json", exclude={"label"}, exclude_none=True),
    }


def chosen_method(kept: Mapping[str, Any], title: str) -> Method:
    """The method that a tune decided for.

    Args:
        kept: What :func:`verdict` returned.
        title: The label that the method gets.

    Raises:
        ConfigError: It cannot be made here, e.g. because a plugin is missing.
    """
    try:
        return Method.from_dict({**kept["method"], "label": title}, f"the method {kept['name']!r} that a tune chose")
    except (KeyError, TypeError) as error:
        raise ConfigError("choices.json does not say what the tune chose", "delete the output folder") from error
