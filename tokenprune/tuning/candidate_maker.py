"""A candidate, and what makes candidates for a model and a budget."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tokenprune.adapters.base import Adapter
from tokenprune.budgets.base import Budget
from tokenprune.config import Method, Positions
from tokenprune.core.tunable import C, get_field, replace_field, tunable_fields
from tokenprune.engine.plan import Plan
from tokenprune.errors import TokenPruneError
from tokenprune.flops.decoder import prefill_cost
from tokenprune.pruners.base import Pruner
from tokenprune.selectors.entropy_profile import EntropyProfile
from tokenprune.selectors.fixed import Fixed

Origin = Literal["named", "variant", "composition", "random"]


@dataclass(frozen=True)
class Candidate:
    """One way to prune a model, at a given budget.

    Attributes:
        name: A readable name, unique among the candidates; also the method's label.
        method: The method, with fixed layers.
        origin: ``named``: a named method as it is shipped, apart from the budget. ``variant``: a named method with
            another layer or other values of tunable fields. ``composition``: a scorer as the relevance or the pool of a
            diversity pruner. ``random``: random tokens.
    """

    name: str
    method: Method
    origin: Origin


@dataclass(frozen=True)
class CandidateMaker:
    """Makes candidates for a model and a budget.

    Attributes:
        adapter: The model's adapter.
        budget: The budget of all candidates.
        visual: Visual tokens of the samples that are asked about: the budget has to be met for each.
        text: Text tokens of a sample.
        curves: The model's entropy curves, if they are known.
        tower_layers: Layers of its vision tower, if they are known.
        affordable: Layers before which pruning meets the budget, as far as that was asked.
    """

    adapter: Adapter
    budget: Budget
    visual: tuple[int, ...]
    text: int
    curves: EntropyProfile | None
    tower_layers: int | None
    affordable: set[tuple[int, ...]] = field(default_factory=set, compare=False, repr=False)

    def candidate(
        self,
        name: str,
        origin: Origin,
        layers: tuple[int, ...],
        pruner: Pruner,
        positions: Positions = "original",
        cut_earlier_caches: bool = False,
    ) -> Candidate:
        """A candidate that has been checked against the model and the budget; nothing runs.

        Raises:
            TokenPruneError: The model cannot be pruned so, or the budget cannot be met.
        """
        method = Method(
            layers=Fixed(layers=layers),
            pruner=pruner,
            budget=self.budget,
            positions=positions,
            cut_earlier_caches=cut_earlier_caches,
            label=name,
        )
        plan = Plan.of(method, layers, self.adapter)

        if layers not in self.affordable:  # solving a budget in FLOPs takes a while
            for visual in self.visual:
                self.budget.keep(visual, replace(plan.schedule, cost=self.cost))
            self.affordable.add(layers)
        return Candidate(name, method, origin)

    def cost(self, visual: Sequence[int], made: int | None) -> int:
        """FLOPs in closed form, see :attr:`tokenprune.budgets.base.Schedule.cost`; it raises where none is known."""
        return prefill_cost(self.adapter.config, self.text)(visual, made)

    def refusal(self, layers: tuple[int, ...], pruner: Pruner) -> str | None:
        """The reason why the model cannot be pruned so within the budget; None if it can."""
        try:
            self.candidate("-", "variant", layers, pruner)
        except TokenPruneError as error:
            return str(error)
        return None

    def possible(self, layers: tuple[int, ...], pruner: Pruner) -> bool:
        """Whether the model can be pruned so within the budget."""
        return self.refusal(layers, pruner) is None

    def fitting(self, component: C) -> C:
        """The component with its own values, and a layer of the tower in place of one that the tower lacks."""
        for path, values in tunable_fields(component, self.tower_layers).items():
            if get_field(component, path) != values[0]:
                component = replace_field(component, path, values[0])
        return component


def definition(candidate: Candidate) -> str:
    """The fields of a candidate's method without its name."""
    return candidate.method.model_dump_json(exclude={"label"})
