"""The contract of a budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenprune.component import Component


@dataclass(frozen=True)
class Schedule:
    """Where tokens are dropped, and what a prefill costs.

    Attributes:
        layers: Tokens are dropped before each of these decoder layers, ascending.
        num_layers: Layers of the decoder.
        cost: FLOPs of one sample's prefill, given the visual tokens that each layer sees and whether the vision
            tower counts. None where nobody knows the model.
    """

    layers: tuple[int, ...]
    num_layers: int
    cost: Callable[[Sequence[int], bool], int] | None = None

    def per_layer(self, before: int, kept: Sequence[int]) -> list[int]:
        """Visual tokens that each layer sees, given those before and those kept after each stage."""
        counts = [before] * self.num_layers
        for layer, left in zip(self.layers, kept, strict=True):
            counts[layer:] = [left] * (self.num_layers - layer)
        return counts


class Budget(Component, ABC):
    """How many visual tokens survive each stage. Pure arithmetic on host integers."""

    def open_ended(self, stage: int, stages: int) -> bool:
        """Whether a stage is left to a pruner that decides by itself how many survive.

        The count of the last stage is then the fewest there may be. Pruners that cannot decide keep the stage's count.

        Args:
            stage: The stage, counted from 0.
            stages: How many there are.
        """
        return False

    def check(self, layers: tuple[int, ...]) -> None:
        """Refuse stages that the budget does not fit; called before any forward.

        Raises:
            BudgetError: The budget cannot be met with stages before these layers.
        """

    @abstractmethod
    def keep(self, before: int, schedule: Schedule) -> tuple[int, ...]:
        """Tokens of one sample that survive each stage.

        Args:
            before: Visual tokens of the sample, at least 1.
            schedule: The stages.

        Returns:
            One count per stage, each at most the one before it; the first at most ``before``. Zero drops every
            visual token.

        Raises:
            BudgetError: The budget cannot be met.
        """
