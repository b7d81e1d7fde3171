"""Budgets that state how many tokens are kept."""

import math
from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from tokenprune.budgets.base import Budget, Schedule
from tokenprune.errors import BudgetError
from tokenprune.ops.topk import floor_share


def ladder(before: int, last: int, stages: int) -> tuple[int, ...]:
    """Counts per stage that fall geometrically from ``before`` to ``last``; all but the last are rounded up."""
    if last >= before:
        return (before,) * stages
    steps = [math.ceil(before * (last / before) ** (step / stages) - 1e-9) for step in range(1, stages)]
    return (*(max(step, last) for step in steps), last)


class KeepCount(Budget):
    """Keep a fixed number of visual tokens per sample after the last stage.

    Attributes:
        tokens: Visual tokens kept. A sample that has no more is not pruned.
    """

    tokens: int = Field(ge=1)

    @property
    def largest_count(self) -> int:
        """See :attr:`tokenprune.budgets.base.Budget.largest_count`."""
        return self.tokens

    def open_ended(self, stage: int, stages: int) -> bool:
        """See :meth:`tokenprune.budgets.base.Budget.open_ended`: only the last count is fixed."""
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
        """See :meth:`tokenprune.budgets.base.Budget.open_ended`: only the last count is fixed."""
        return stage < stages - 1

    def keep(self, before: int, schedule: Schedule) -> tuple[int, ...]:
        """See :meth:`tokenprune.budgets.base.Budget.keep`."""
        return ladder(before, max(1, floor_share(before, self.ratio)), len(schedule.layers))


class KeepSchedule(Budget):
    """Keep a stated number, or a stated share of a sample's visual tokens, at each stage.

    Attributes:
        ratios: Per stage the share of the visual tokens *before the first stage* that survives; it must not rise.
        tokens: Per stage the number of tokens that survives; it must not rise. Give exactly one of the two.
    """

    ratios: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    tokens: tuple[PositiveInt, ...] = ()

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if bool(self.ratios) == bool(self.tokens):
            raise ValueError("give exactly one of 'ratios' and 'tokens'")
        counts: tuple[float, ...] = self.ratios or self.tokens
        if list(counts) != sorted(counts, reverse=True):
            name = "ratios" if self.ratios else "tokens"
            raise ValueError(f"'{name}': no stage can keep more than the one before it, got {list(counts)}")
        return self

    @property
    def largest_count(self) -> int | None:
        """See :attr:`tokenprune.budgets.base.Budget.largest_count`."""
        return max(self.tokens, default=None)

    def check(self, layers: tuple[int, ...]) -> None:
        """See :meth:`tokenprune.budgets.base.Budget.check`."""
        stages = len(self.ratios or self.tokens)
        if stages != len(layers):
            raise BudgetError(
                f"a schedule of {stages} stages for pruning before {len(layers)} layers"
                f" ({', '.join(map(str, layers))})",
                "give one number per stage",
            )

    def keep(self, before: int, schedule: Schedule) -> tuple[int, ...]:
        """See :meth:`tokenprune.budgets.base.Budget.keep`."""
        self.check(schedule.layers)
        if self.tokens:
            return tuple(min(tokens, before) for tokens in self.tokens)
        return tuple(max(1, floor_share(before, ratio)) for ratio in self.ratios)


class DropAll(Budget):
    """Drop all visual tokens: from that layer on the model sees text only."""

    def keep(self, before: int, schedule: Schedule) -> tuple[int, ...]:
        """See :meth:`tokenprune.budgets.base.Budget.keep`."""
        return (0,) * len(schedule.layers)


class Adaptive(Budget):
    """The pruner decides how many tokens survive, at least one per image. Only adaptive pruners accept it."""

    def open_ended(self, stage: int, stages: int) -> bool:
        """See :meth:`tokenprune.budgets.base.Budget.open_ended`."""
        return True

    def keep(self, before: int, schedule: Schedule) -> tuple[int, ...]:
        """See :meth:`tokenprune.budgets.base.Budget.keep`."""
        return (1,) * len(schedule.layers)
