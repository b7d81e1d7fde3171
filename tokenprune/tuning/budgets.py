"""Budgets that cost every candidate the same, at which candidates are compared."""

from typing import Any

from pydantic import Field
from pydantic_core import PydanticCustomError

from tokenprune.budgets.base import Budget
from tokenprune.budgets.flops_reduction import FlopsReduction
from tokenprune.budgets.label import budget_label
from tokenprune.budgets.layer_average import LayerAverage
from tokenprune.core.component import Component, FromRegistry
from tokenprune.core.plugins import registry

PREFILL_TIME = "prefill_time"


class PrefillTime(Component):
    """Equal measured time: every candidate keeps as many tokens as its prefill has time for.

    Attributes:
        ratio: Time of the prefill as a share of the unpruned one's, 0 < ratio < 1.
    """

    ratio: float = Field(gt=0, lt=1)


#: A budget that costs every candidate the same.
EqualCost = LayerAverage | FlopsReduction | PrefillTime


class EqualCostBudget(FromRegistry):
    """Annotation for a field that holds such a budget: an instance, or a mapping with ``name``."""

    def __init__(self) -> None:
        super().__init__("budgets")

    def build(self, value: Any) -> EqualCost:
        """Turn an instance or a mapping into a budget."""
        if isinstance(value, PrefillTime):
            return value
        if isinstance(value, dict) and value.get("name") == PREFILL_TIME:
            return PrefillTime.model_validate({key: item for key, item in value.items() if key != "name"})
        budget = super().build(value)
        if not isinstance(budget, LayerAverage | FlopsReduction):
            name = registry("budgets").name_of(type(budget))
            raise PydanticCustomError(
                "component_form",
                "candidates with the budget {name} would not cost the same; use layer_average, flops_reduction or"
                " prefill_time",
                {"name": name},
            )
        return budget

    def dump(self, value: Any) -> dict[str, Any]:
        """The mapping that :meth:`build` turns into an equal budget."""
        if isinstance(value, PrefillTime):
            return {"name": PREFILL_TIME, **value.model_dump(mode="json")}
        return super().dump(value)


def cost_label(budget: Budget | PrefillTime) -> str:
    """A budget in a few words, e.g. ``layer_average 0.222``."""
    return f"{PREFILL_TIME} {budget.ratio:g}" if isinstance(budget, PrefillTime) else budget_label(budget)
