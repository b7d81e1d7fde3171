"""``downsampled`` in an experiment: smaller pictures, at as many visual tokens as a budget leaves."""

from __future__ import annotations

from typing import Annotated

from tokenprune.budgets.base import Budget
from tokenprune.core.component import Component, FromRegistry
from tokenprune.errors import BudgetError
from tokenprune.models.downsample import check_budget


class Downsampled(Component):
    """Smaller pictures in place of pruning; see :mod:`tokenprune.models.downsample`.

    Attributes:
        budget: States the visual tokens, as if they were dropped before the first decoder layer.
    """

    budget: Annotated[Budget, FromRegistry("budgets")]


def fits(budget: Budget) -> bool:
    """Whether a budget states a number of tokens that a smaller picture can have."""
    try:
        check_budget(budget)
    except BudgetError:
        return False
    return True
