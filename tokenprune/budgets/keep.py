"""Budgets that name the number kept."""

from __future__ import annotations

import math
from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from tokenprune.budgets.base import Budget, Schedule
from tokenprune.errors import BudgetError


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

    def open_ended(self, stage: int, stages: int) -> bool:
        """See :meth:`tokenprune.budgets.base.Budget.open_ended`: only the last count is stated."""
        return stage < stages - 1

    def keep(self, before: int, schedule: Schedule) -> tuple[int, ...]:
        """See :meth:`tokenprune.budgets.base.Budget.keep`."""
        return ladder(before, min(self.tokens, before), len(schedule.layers))


class KeepRatio(Budget):
    """Keep a share of each sample's visual tokens after the last stage, rounded down, at least one.

    Attributes:
        ratio: Share kept, 0 < ratio <= 1.
    """

    ratio: float = Field(gt=0, le=1)

    def open_ended(self, stage: int, stages: int) -> bool:
        """See :meth:`tokenprune.budgets.base.Budget.open_ended`: only the last count is stated."""
        return stage < stages - 1

    def keep(self, before: int, schedule: Schedule) -> tuple[int, ...]:
        """See :meth:`tokenprune.budgets.base.Budget.keep`."""
        # the tiny addend makes 0.07 * 100 seven, not six
        return ladder(before, max(1, math.floor(before * self.ratio + 1e-9)), len(schedule.layers))


class KeepSchedule(Budget):
    """Keep a stated number, or a stated share of a sample's visual tokens, at each stage.

    Attributes:
        ratios: Share of the visual tokens *before the first stage* that survive each stage, not rising.
        tokens: The same in tokens; exactly one of the two is given.
    """

    ratios: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    tokens: tuple[PositiveInt, ...] = ()

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if bool(self.ratios) == bool(self.tokens):
            raise ValueError("give exactly one of 'ratios' and 'tokens'")
        given: tuple[float, ...] = self.ratios or self.tokens
        if list(given) != sorted(given, reverse=True):
            raise ValueError(f"every stage keeps at most what the one before it kept, got {list(given)}")
        return self

    def check(self, layers: tuple[int, ...]) -> None:
        """See :meth:`tokenprune.budgets.base.Budget.check`."""
        given = len(self.ratios or self.tokens)
        if given != len(layers):
            raise BudgetError(
                f"a schedule of {given} stages for pruning before {len(layers)} layers ({', '.join(map(str, layers))})",
                "give one number per stage",
            )

    def keep(self, before: int, schedule: Schedule) -> tuple[int, ...]:
        """See :meth:`tokenprune.budgets.base.Budget.keep`."""
        self.check(schedule.layers)
        if self.tokens:
            return tuple(min(tokens, before) for tokens in self.tokens)
        return tuple(max(1, math.floor(before * ratio + 1e-9)) for ratio in self.ratios)


class DropAll(Budget):
    """Drop every visual token: from that layer on the model works with text alone."""

    def keep(self, before: int, schedule: Schedule) -> tuple[int, ...]:
        """See :meth:`tokenprune.budgets.base.Budget.keep`."""
        return (0,) * len(schedule.layers)


class Adaptive(Budget):
    """The pruner decides how many survive, at least one per image; only for pruners that can."""

    def open_ended(self, stage: int, stages: int) -> bool:
        """See :meth:`tokenprune.budgets.base.Budget.open_ended`."""
        return True

    def keep(self, before: int, schedule: Schedule) -> tuple[int, ...]:
        """See :meth:`tokenprune.budgets.base.Budget.keep`."""
        return (1,) * len(schedule.layers)
