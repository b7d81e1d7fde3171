"""The budget of the pruning papers: visual tokens averaged over all decoder layers."""

import math
from typing import Self

from pydantic import Field, model_validator

from tokenprune.budgets.base import Budget, Schedule
from tokenprune.budgets.keep import ladder
from tokenprune.errors import BudgetError


class LayerAverage(Budget):
    """Keep the most tokens with which the average over all decoder layers is at most the target.

    With L layers, one stage before layer K and N visual tokens, ``k = floor((L * target - K * N) / (L - K))``: the
    first K layers see all N. With several stages the counts fall geometrically.

    Source: EntropyPrune (arXiv 2602.17196) states its 192 / 128 / 64 of 576 tokens in this measure.

    Attributes:
        tokens: Target average in tokens.
        ratio: Target average as a share of the sample's visual tokens. Give exactly one of the two.
    """

    tokens: int | None = Field(default=None, ge=1)
    ratio: float | None = Field(default=None, gt=0, le=1)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.tokens is None) == (self.ratio is None):
            raise ValueError("give exactly one of 'tokens' and 'ratio'")
        return self

    def target(self, before: int) -> float:
        """The target average in tokens, for a sample of ``before`` visual tokens."""
        return float(self.tokens) if self.tokens is not None else float(self.ratio or 0) * before

    @property
    def largest_count(self) -> int | None:
        """See :attr:`tokenprune.budgets.base.Budget.largest_count`."""
        return self.tokens

    def keep(self, before: int, schedule: Schedule) -> tuple[int, ...]:
        """See :meth:`tokenprune.budgets.base.Budget.keep`."""
        target = self.target(before)
        if target >= before:
            return (before,) * len(schedule.layers)
        counts = self._single(before, target, schedule) if len(schedule.layers) == 1 else None
        if counts is None:
            counts = self._several(before, target, schedule)
        if counts[-1] < 1:
            first, layers = schedule.layers[0], schedule.num_layers
            least = (first * before + layers - first) / layers
            raise BudgetError(
                f"a layer average of {target:g} tokens cannot be met: {before} visual tokens through the first {first}"
                f" of {layers} layers already average {first * before / layers:.1f}",
                f"ask for at least {least:.1f}, or prune at an earlier layer",
            )
        return counts

    def _single(self, before: int, target: float, schedule: Schedule) -> tuple[int, ...]:
        first, layers = schedule.layers[0], schedule.num_layers
        return (math.floor((layers * target - first * before) / (layers - first) + 1e-9),)

    def _several(self, before: int, target: float, schedule: Schedule) -> tuple[int, ...]:
        """The counts with the largest last count whose average is at most the target; zeros if there are none."""
        low, high = 0, before
        while low < high:
            middle = (low + high + 1) // 2
            if layer_average(before, ladder(before, middle, len(schedule.layers)), schedule) <= target + 1e-9:
                low = middle
            else:
                high = middle - 1
        return ladder(before, low, len(schedule.layers)) if low else (0,) * len(schedule.layers)


def layer_average(before: int, kept: tuple[int, ...], schedule: Schedule) -> float:
    """Visual tokens averaged over all decoder layers.

    Args:
        before: Visual tokens before the first stage.
        kept: Visual tokens after each stage.
        schedule: The stages.
    """
    edges = (0, *schedule.layers, schedule.num_layers)
    counts = (before, *kept)
    total = sum(count * (stop - start) for count, start, stop in zip(counts, edges[:-1], edges[1:], strict=True))
    return total / schedule.num_layers
