"""``tuned`` in an experiment: a tune on other samples of the task chooses the method for a budget."""

import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from tokenprune.budgets.base import Budget
from tokenprune.config import Method
from tokenprune.core.component import Component, FromRegistry
from tokenprune.errors import ConfigError
from tokenprune.tuning import TuneResult
from tokenprune.tuning.budgets import EqualCost, EqualCostBudget, cost_label
from tokenprune.tuning.config import TuneRules
from tokenprune.tuning.run_config import MethodName, check_name

#: A candidate of a tune.
CandidateName = Annotated[str, MethodName(), AfterValidator(check_name)]

#: The name of an experiment's method that a tune chooses.
TUNED = "tuned"


class TuneSettings(TuneRules):
    """The settings of a tune in an experiment; everything else it has from the experiment.

    Attributes:
        methods: The candidates: names of named methods with their variants, or of YAML files with a method; null for
            all named methods.
    """

    methods: Annotated[tuple[CandidateName, ...], Field(min_length=1)] | None = None


class Tune(Component):
    """A tune that chooses the method of a series: its settings and its budget.

    Attributes:
        settings: How the tune goes.
        budget: What the candidates may cost.
    """

    settings: TuneSettings
    budget: Annotated[Budget, FromRegistry("budgets")]

    def folder(self, output: Path, title: str) -> Path:
        """The folder of the tune's files.

        Args:
            output: Folder of the experiment.
            title: The name of the method in tables; a label of the user's is a folder of its own.
        """
        folder = output / TUNED
        if title != TUNED:
            name = re.sub(r"[^\w-]+", "-", title)
            # labels that differ in other characters only have folders of their own, too
            folder /= name if name == title else f"{name}-{zlib.crc32(title.encode()):08x}"
        return folder / cost_label(_equal_cost(self.budget)).replace(" ", "-")

    def fields(self) -> dict[str, Any]:
        """The fields of a :class:`tokenprune.TuneConfig` that the tune decides."""
        settings = {name: getattr(self.settings, name) for name in TuneSettings.model_fields}
        return {"budget": _equal_cost(self.budget), **settings}


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
    """The choice of a tune, as an experiment keeps it: the candidate's name, why, and its method; JSON-ready."""
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
