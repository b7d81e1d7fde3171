"""Budgets that name the number kept after the last stage."""

from __future__ import annotations

import math

from pydantic import Field

from tokenprune.budgets.base import Budget, Schedule


def ladder(before: int, last: int, stages: int) -> tuple[int, ...]:
    """Counts that fall geometrically from ``before`` to ``last`` in ``stages`` steps, rounded up on the way."""
    if last >= before:
        return (before,) * stages
    steps = [math.ceil(before * (last / before) ** (step / stages) - 1e-9) for step in range(1, stages)]
    return (*(max(step, last) for step in steps), last)


class KeepCount(Budget):
    """Keep a fixed number of visual tokens per sample after the last stage.

    Attributes:
        tokens: Visual tokens kept; a sample that has no more is left unpruned.
    """

    tokens: int = Field(ge=1)

    def keep(self, before: int, schedule: Schedule) -> tuple[int, ...]:
        """See :meth:`tokenprune.budgets.base.Budget.keep`."""
        return ladder(before, min(self.tokens, before), len(schedule.layers))


class KeepRatio(Budget):
    """Keep a share of each sample's visual tokens after the last stage, rounded down, at least one.

    Attributes:
        ratio: Share kept, 0 < ratio <= 1.
    """

    ratio: float = Field(gt=0, le=1)

    def keep(self, before: int, schedule: Schedule) -> tuple[int, ...]:
        """See :meth:`tokenprune.budgets.base.Budget.keep`."""
        # the tiny addend makes 0.07 * 100 seven, not six
        return ladder(before, max(1, math.floor(before * self.ratio + 1e-9)), len(schedule.layers))
