"""The contract of a budget."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tokenprune.core.component import Component


@dataclass(frozen=True)
class Schedule:
    """The layers before which tokens are dropped, and the cost of a prefill.

    Attributes:
        layers: Tokens are dropped before each of these decoder layers, ascending.
        num_layers: Number of decoder layers.
        cost: FLOPs of one sample's prefill, given the visual tokens that each layer sees and those that vision tower
            and projector make, or None where these two do not count. None where the model is not known.
    """

    layers: tuple[int, ...]
    num_layers: int
    cost: Callable[[Sequence[int], int | None], int] | None = None

    def per_layer(self, before: int, kept: Sequence[int]) -> list[int]:
        """Visual tokens that each layer sees.

        Args:
            before: Visual tokens before the first stage.
            kept: Visual tokens after each stage.
        """
        counts = [before] * self.num_layers
        for layer, count in zip(self.layers, kept, strict=True):
            counts[layer:] = [count] * (self.num_layers - layer)
        return counts


class Budget(Component, ABC):
    """States how many visual tokens survive each stage. Budgets compute with integers on the host only."""

    def __str__(self) -> str:
        return repr(self)  # with its kind: pydantic would print the numbers alone

    def open_ended(self, stage: int, stages: int) -> bool:
        """Whether the pruner may decide how many tokens survive a stage.

        The count of the last stage is then the smallest number that may survive. A pruner that does not decide the
        number keeps the count of the stage.

        Args:
            stage: The stage, counted from 0.
            stages: Number of stages.
        """
        return False

    @property
    def largest_count(self) -> int | None:
        """The largest number of tokens that the budget states, or None: more than a sample has is a mistake."""
        return None

    @property
    def reads_cost(self) -> bool:
        """Whether :meth:`keep` reads ``schedule.cost``: its numbers then depend on the model and on a sample's text."""
        return False

    def check(self, layers: tuple[int, ...]) -> None:
        """Check that the budget fits the stages. The engine calls it before any forward pass.

        Args:
            layers: The layers before which tokens are dropped.

        Raises:
            BudgetError: The budget cannot be met with these stages.
        """

    @abstractmethod
    def keep(self, before: int, schedule: Schedule) -> tuple[int, ...]:
        """The number of one sample's visual tokens that survive each stage.

        Args:
            before: Visual tokens of the sample, at least 1.
            schedule: The stages.

        Returns:
            One count per stage, none larger than the one before it or than ``before``. Zero drops all visual tokens.

        Raises:
            BudgetError: The budget cannot be met.
        """
