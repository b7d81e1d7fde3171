"""A budget that states by how much the FLOPs of the prefill fall."""

from typing import Literal

from pydantic import Field

from tokenprune.budgets.base import Budget, Schedule
from tokenprune.budgets.keep import ladder
from tokenprune.errors import BudgetError


class FlopsReduction(Budget):
    """Keep the most tokens with which the FLOPs of the prefill fall by at least the given share.

    The FLOPs are those of the closed form. The count is solved for each sample with its own visual and text tokens, as
    if it came alone: padding is computed, too, but does not count. With several stages the counts fall geometrically.

    Attributes:
        percent: Reduction in percent, 0 < percent < 100.
        scope: ``model`` counts the decoder, the vision tower and the projector, as the papers do (pruning does not
            change the latter two). ``decoder`` counts the decoder alone.
    """

    percent: float = Field(gt=0, lt=100)
    scope: Literal["model", "decoder"] = "model"

    @property
    def reads_cost(self) -> bool:
        """See :attr:`tokenprune.budgets.base.Budget.reads_cost`."""
        return True

    def keep(self, before: int, schedule: Schedule) -> tuple[int, ...]:
        """See :meth:`tokenprune.budgets.base.Budget.keep`."""
        if schedule.cost is None:
            raise BudgetError("flops_reduction needs a model whose costs are known", "use it through tokenprune.apply")
        unpruned = self.cost(before, (before,) * len(schedule.layers), schedule)
        low, high = 0, before
        while low < high:
            middle = (low + high + 1) // 2
            pruned = self.cost(before, ladder(before, middle, len(schedule.layers)), schedule)
            if pruned <= unpruned * (1 - self.percent / 100):
                low = middle
            else:
                high = middle - 1
        if low == 0:
            best = 1 - self.cost(before, ladder(before, 1, len(schedule.layers)), schedule) / unpruned
            raise BudgetError(
                f"the prefill cannot become {self.percent:g} % cheaper: with one of {before} visual tokens kept from"
                f" layer {schedule.layers[0]} on it is {100 * best:.1f} % cheaper",
                f"ask for at most {int(1000 * best) / 10:g}, or prune at an earlier layer",
            )
        return ladder(before, low, len(schedule.layers))

    def cost(self, before: int, kept: tuple[int, ...], schedule: Schedule) -> int:
        """FLOPs of the prefill with ``kept`` tokens after each stage."""
        assert schedule.cost is not None
        return schedule.cost(schedule.per_layer(before, kept), before if self.scope == "model" else None)
