"""One line of an experiment: a method with a budget and, if it is random, a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenprune.budgets.base import Budget
from tokenprune.config import Method
from tokenprune.plugins import registry


@dataclass(frozen=True)
class Series:
    """What is run over all samples.

    Attributes:
        title: The method's name in tables.
        method: The method; None is the unpruned model.
        seed: The seed, or None.
        budget: The budget in short, or None.
    """

    title: str
    method: Method | None
    seed: int | None
    budget: str | None

    @property
    def key(self) -> str:
        """The series' name in result files."""
        parts = [self.title, self.budget, None if self.seed is None else f"seed {self.seed}"]
        return " / ".join(part for part in parts if part is not None)

    @property
    def definition(self) -> dict[str, Any] | None:
        """The method in full, JSON-ready: what results of this name stand for."""
        return self.method.model_dump(mode="json", exclude={"label"}) if self.method else None


def slug(budget: Budget) -> str:
    """A budget in a few words, e.g. ``keep_ratio 0.33``."""
    name = registry("budgets").name_of(type(budget))
    values = [
        f"{value:g}" if isinstance(value, float) else str(value)
        for value in budget.model_dump(exclude_none=True).values()
    ]
    return " ".join([name, *values])
