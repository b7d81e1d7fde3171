"""The numbers that charts show, free of where they come from (an experiment, a tune) and of how they are drawn."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tokenprune.drawing.palette import MethodStyle


@dataclass(frozen=True)
class Point:
    """A method with a budget in the charts.

    Attributes:
        method: The method's name.
        budget: The budget in a few words.
        mean: What was measured, in the unit of the charts.
        low: Lower end of its 95 % interval.
        high: Upper end of it.
        visual: Visual tokens kept after the last stage, per sample; NaN where unknown.
        average: Visual tokens per sample and layer; NaN where unknown.
        flops_reduction: Saved share of the decoder's prefill FLOPs; NaN where unknown.
        role: Methods are compared with each other, with random choices, and with an upper bound.
        hollow: Whether its mark is hollow: it was not measured on all samples.
        strong: Whether its name is bold: it is within the noise of the best.
    """

    method: str
    budget: str
    mean: float
    low: float
    high: float
    visual: float = math.nan
    average: float = math.nan
    flops_reduction: float = math.nan
    role: Literal["method", "random", "bound"] = "method"
    hollow: bool = False
    strong: bool = False


@dataclass(frozen=True)
class Reference:
    """A band from side to side, e.g. of the unpruned model.

    Attributes:
        method: Its name.
        mean: What was measured, in the unit of the charts.
        low: Lower end of its 95 % interval.
        high: Upper end of it.
        visual: Visual tokens per sample; NaN where unknown.
        budget: The only budget whose chart shows it; empty for all charts.
    """

    method: str
    mean: float
    low: float
    high: float
    visual: float = math.nan
    budget: str = ""


@dataclass(frozen=True)
class Charts:
    """The charts of a report; all show the same points.

    Attributes:
        quantity: What was measured, with its unit.
        points: One per method and budget.
        kinds: The charts to show.
        references: Bands.
        front: Points that no other one beats in both cost and quantity; joined by a line.
        log: Whether the quantity has a logarithmic axis.
        bounds: The smallest and the largest possible value; None where there is no bound.
        beside: Charts that have the same axes.
    """

    quantity: str
    points: tuple[Point, ...]
    kinds: tuple[ChartKind, ...]
    references: tuple[Reference, ...] = ()
    front: tuple[Point, ...] = ()
    log: bool = False
    bounds: tuple[float | None, float | None] = (0.0, 100.0)
    beside: tuple[Charts, ...] = ()

    @property
    def name(self) -> str:
        """The quantity without its unit."""
        return self.quantity.partition(",")[0]

    @property
    def budgets(self) -> list[str]:
        """All budgets, in the order of the points."""
        return list(dict.fromkeys(point.budget for point in self.points))

    @property
    def methods(self) -> list[str]:
        """All names in the charts."""
        names = [point.method for point in self.points] + [item.method for item in self.references]
        return list(dict.fromkeys(names))

    def ranked(self) -> list[str]:
        """The methods that have points, the best first: by the mean distance from the mean of their budget's methods.

        A method that lacks a budget is neither rewarded nor punished for it.
        """
        known = [point for point in self.points if math.isfinite(point.mean)]
        distances: dict[str, list[float]] = defaultdict(list)
        for budget in self.budgets:
            means = {point.method: point.mean for point in known if point.budget == budget}
            for method, mean in means.items():
                distances[method].append(mean - statistics.fmean(means.values()))
        return sorted(distances, key=lambda name: (-round(statistics.fmean(distances[name]), 9), name))


@dataclass(frozen=True)
class Chart:
    """A chart on a page.

    Attributes:
        id: A word that no other chart of the page has.
        title: The heading.
        label: A sentence for readers who do not see it.
        spec: The specification in Vega-Lite, with its data.
        least_width: Pixels that it needs; a narrower page scrolls it.
        narrow: Whether it may stand beside others.
    """

    id: str
    title: str
    label: str
    spec: dict[str, Any]
    least_width: int = 0
    narrow: bool = False


class ChartKind(Protocol):
    """A way to draw the points of charts. A new chart is an object of this kind in :attr:`Charts.kinds`."""

    def draw(self, charts: Charts, styles: Mapping[str, MethodStyle]) -> list[Chart]:
        """Draw charts for a page; none where the numbers are unknown."""
        ...
