"""The numbers that charts show, free of where they come from (an experiment, a tune) and of how they are drawn."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from tokenprune.drawing.palette import MethodStyle
from tokenprune.drawing.vega import Json, Scale
from tokenprune.tables.table import Cell, Heading, Row, Table

#: Points of a percentage that an axis spans at least: differences of one or two should not fill it.
LEAST_SPAN = 10.0

#: What a point is to the others: a method, or something that methods are compared with.
Role: TypeAlias = Literal["method", "random", "smaller", "bound"]


@dataclass(frozen=True)
class Point:
    """A method with a budget in the charts.

    Attributes:
        method: The method's name.
        budget: The budget in a few words; empty for none.
        mean: What was measured, in the unit of the charts.
        low: Lower end of its 95 % interval.
        high: Upper end of it.
        visual: Visual tokens kept after the last stage, per sample; NaN where unknown.
        average: Visual tokens per sample and layer; NaN where unknown.
        flops_reduction: Saved share of the decoder's prefill FLOPs; NaN where unknown.
        role: Methods are compared with each other, with random choices, smaller pictures, and an upper bound.
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
    role: Role = "method"
    hollow: bool = False
    strong: bool = False

    def row(self, scale: Scale) -> Json:
        """The data of its mark and tooltip, JSON-ready; the interval is cut to the axis."""
        saved = "unknown" if math.isnan(self.flops_reduction) else f"-{100 * self.flops_reduction:.1f} %"
        tokens, average = ("unknown" if math.isnan(n) else f"{n:.1f}" for n in (self.visual, self.average))
        return {
            "method": self.method,
            "budget": self.budget,
            "mean": self.mean,
            "low": min(max(self.low, scale.low), scale.high),
            "high": min(max(self.high, scale.low), scale.high),
            "value": f"{self.mean:.4g} ({self.low:.4g} to {self.high:.4g})",
            "tokens": tokens,
            "average": average,
            "flops": saved,
            "role": self.role,
            "hollow": self.hollow,
        }


@dataclass(frozen=True)
class Charts:
    """The charts of a report; all show the same points.

    Attributes:
        quantity: What was measured, with its unit.
        points: One per method and budget.
        kinds: The charts to show.
        references: Bands from side to side, e.g. of the unpruned model; one with a budget is only in its chart.
        front: Points that no other one beats in both cost and quantity; joined by a line.
        log: Whether the quantity has a logarithmic axis.
        bounds: The smallest and the largest possible value; None where there is no bound.
        beside: Charts that have the same axes.
    """

    quantity: str
    points: tuple[Point, ...]
    kinds: tuple[ChartKind, ...]
    references: tuple[Point, ...] = ()
    front: tuple[Point, ...] = ()
    log: bool = False
    bounds: tuple[float | None, float | None] = (0.0, 100.0)
    beside: tuple[Charts, ...] = ()

    @property
    def title(self) -> str:
        """The quantity without its unit, as the beginning of a title."""
        return self.quantity.partition(",")[0].capitalize()

    @property
    def budgets(self) -> list[str]:
        """All budgets, in the order of the points."""
        return list(dict.fromkeys(point.budget for point in self.points))

    @property
    def methods(self) -> list[str]:
        """All names in the charts."""
        return list(dict.fromkeys(point.method for point in (*self.points, *self.references)))

    @property
    def scale(self) -> Scale:
        """The axis of what was measured: all intervals that are finite, and a little more."""
        points = [point for one in (self, *self.beside) for point in (*one.points, *one.references)]
        values = [end for it in points for end in (it.low, it.mean, it.high) if math.isfinite(end)] or [0.0, 1.0]
        if self.log:
            positive = [point.mean for point in points if point.mean > 0] or [1.0]
            return Scale(min(positive) / 2, max(*values, *positive) * 1.2, log=True)
        span, (smallest, largest) = max(values) - min(values), self.bounds
        margin = max(0.04 * span, ((0.0 if largest is None else LEAST_SPAN) - span) / 2) or 1.0
        low, high = min(values) - margin, max(values) + margin
        return Scale(low if smallest is None else max(low, smallest), high if largest is None else min(high, largest))

    @property
    def tooltip(self) -> list[Json]:
        """The fields of a tooltip."""
        titles = {
            "method": "method",
            "budget": "budget",
            "value": self.quantity,
            "tokens": "visual tokens kept",
            "average": "layer average",
            "flops": "FLOPs",
        }
        return [{"field": field, "type": "nominal", "title": title} for field, title in titles.items()]

    def values(self, chart: Chart) -> Table:
        """The tooltips of a chart's marks as a table, for readers who do not point at them; bands come last."""
        sources = [part.get("data", {}).get("values", []) for part in (chart.spec, *chart.spec.get("layer", []))]
        found = {(row["method"], row["budget"]): row for rows in sources for row in rows if "method" in row}
        fields = {item["field"]: Heading(item["title"]) for item in self.tooltip}
        rows = (Row(tuple(Cell(row[field]) for field in fields), *key) for key, row in found.items())
        return Table(f"Values of the chart: {chart.title}", tuple(fields.values()), tuple(rows))

    def ranked(self) -> list[str]:
        """The methods that have points, the best first: by the mean distance from the mean of their budget's methods.

        A method that lacks a budget is neither rewarded nor punished for it.
        """
        distances: dict[str, list[float]] = defaultdict(list)
        for budget in self.budgets:
            here = [point for point in self.points if point.budget == budget and math.isfinite(point.mean)]
            for point in here:
                distances[point.method].append(point.mean - statistics.fmean(other.mean for other in here))
        return sorted(distances, key=lambda name: (-round(statistics.fmean(distances[name]), 9), name))


@dataclass(frozen=True)
class Chart:
    """A chart on a page.

    Attributes:
        title: The heading.
        spec: The specification in Vega-Lite, with its data.
        least_width: Pixels that it needs; a narrower page scrolls it.
    """

    title: str
    spec: Json
    least_width: int


class ChartKind(Protocol):
    """A way to draw the points of charts. A new chart is an object of this kind in :attr:`Charts.kinds`."""

    def draw(self, charts: Charts, styles: Mapping[str, MethodStyle]) -> list[Chart]:
        """Draw charts for a page; none where the numbers are unknown."""
        ...
