"""The name of a budget in tables and files."""

from __future__ import annotations

from tokenprune.budgets.base import Budget
from tokenprune.core.plugins import registry


def slug(budget: Budget) -> str:
    """A budget in a few words, e.g. ``keep_ratio 0.33``."""
    name = registry("budgets").name_of(type(budget))
    values = [
        f"{value:g}" if isinstance(value, float) else str(value)
        for value in budget.model_dump(exclude_none=True).values()
        if value != ()
    ]
    return " ".join([name, *values])
