"""The contract of a budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from tokenprune.component import Component


@dataclass(frozen=True)
class Schedule:
    """Where tokens are dropped: before each of ``layers`` (ascending) of a decoder of ``num_layers`` layers."""

    layers: tuple[int, ...]
    num_layers: int


class Budget(Component, ABC):
    """How many visual tokens survive each stage. Pure arithmetic on host integers."""

    @abstractmethod
    def keep(self, before: int, schedule: Schedule) -> tuple[int, ...]:
        """Tokens of one sample that survive each stage.

        Args:
            before: Visual tokens of the sample, at least 1.
            schedule: The stages.

        Returns:
            One count per stage, each at most the one before it; the first at most ``before``.

        Raises:
            BudgetError: The budget cannot be met (fewer than one token would be left).
        """
