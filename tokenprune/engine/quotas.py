"""The number of visual tokens of each image that survive each stage of one prefill. Host integers only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

from tokenprune.engine.plan import Plan
from tokenprune.errors import BudgetError
from tokenprune.ops.topk import apportion

#: FLOPs of a prefill, see :func:`tokenprune.flops.decoder.prefill_cost`.
Cost = Callable[[Sequence[int], int | None], int]


@dataclass(frozen=True)
class Lengths:
    """What, beside the visual tokens of a sample, the cost of its prefill depends on.

    Attributes:
        text: Tokens that are neither visual nor padding.
        cached: Tokens of earlier turns that each layer's cache holds; empty in a first turn.
    """

    text: int
    cached: tuple[int, ...] = ()


class Quotas:
    """The counts of one prefill: visual tokens now, and after each stage.

    Args:
        plan: The method's stages.
        sizes: Visual tokens per sample and image.
        cost: Makes the cost function of a sample from its other lengths, for budgets stated in FLOPs.
        lengths: Counts these per sample; called only for such budgets.

    Attributes:
        sizes: Visual tokens per sample and image now, after the stages that have passed.
        initial: Visual tokens per sample before any stage.
    """

    def __init__(
        self,
        plan: Plan,
        sizes: list[list[int]],
        cost: Callable[[Lengths], Cost],
        lengths: Callable[[], Sequence[Lengths]],
    ) -> None:
        self._plan = plan
        self._cost = cost
        self._lengths = cache(lengths)
        self._budget_cache: dict[tuple[int, Lengths | None], tuple[int, ...]] = {}
        self.sizes = sizes
        self.initial = [sum(row) for row in sizes]

    @property
    def totals(self) -> list[int]:
        """Visual tokens per sample now."""
        return [sum(row) for row in self.sizes]

    @property
    def targets(self) -> tuple[int, ...]:
        """Tokens per sample that survive the last stage."""
        return tuple(self._survivors(sample)[-1] for sample in range(len(self.initial)))

    def at(self, stage: int) -> list[list[int]]:
        """Tokens to keep per sample and image at a stage: the budget's count, shared between images in proportion.

        Raises:
            BudgetError: A sample has more images than tokens to keep.
        """
        return [self._share(sample, stage) for sample in range(len(self.sizes))]

    def _share(self, sample: int, stage: int) -> list[int]:
        sizes = self.sizes[sample]
        wanted = self._survivors(sample)[-1 if self.pruner_decides(stage) else stage]
        if wanted >= sum(sizes):
            return list(sizes)
        if wanted == 0:
            return [0] * len(sizes)
        if wanted < len(sizes) and self.pruner_decides(stage):
            wanted = len(sizes)
        if wanted < len(sizes):
            raise BudgetError(
                f"sample {sample}: a budget of {wanted} visual tokens for {len(sizes)} images",
                f"every image keeps at least one: ask for {len(sizes)} or more",
            )
        return apportion(wanted, sizes)

    def _survivors(self, sample: int) -> tuple[int, ...]:
        """Tokens of one sample that survive each stage, by the budget."""
        if self.initial[sample] == 0:
            return (0,) * len(self._plan.stages)
        kept = self._budget_cache.get(self._alike(sample))
        if kept is None:
            schedule = replace(self._plan.schedule, cost=partial(self._cost_of, sample))
            kept = self._plan.budget.keep(self.initial[sample], schedule)
            self._budget_cache[self._alike(sample)] = kept
        return kept

    def _alike(self, sample: int) -> tuple[int, Lengths | None]:
        """Key of samples that a budget treats alike: visual tokens, and the others where it reads the cost."""
        return self.initial[sample], self._lengths()[sample] if self._plan.budget.reads_cost else None

    def _cost_of(self, sample: int, visual: Sequence[int], made: int | None) -> int:
        if not self._plan.budget.reads_cost:
            raise BudgetError(
                f"{type(self._plan.budget).__name__} read the cost of a prefill, which it does not declare",
                "let its reads_cost be true",
            )
        return self._cost(self._lengths()[sample])(visual, made)

    def may_drop(self, stage: int) -> bool:
        """Whether anything may be dropped at a stage: if not, nothing has to be observed for it."""
        fewer = any(self._survivors(sample)[stage] < count for sample, count in enumerate(self.initial))
        return fewer or self.pruner_decides(stage)

    def pruner_decides(self, stage: int) -> bool:
        """Whether the pruner decides how many survive a stage."""
        stages = self._plan.stages
        return self._plan.budget.open_ended(stage, len(stages)) and stages[stage].pruner.adaptive
