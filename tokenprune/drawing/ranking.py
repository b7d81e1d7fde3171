"""The measured quantity at one budget: a row per method with its mark, its interval, and its cost at the right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenprune.drawing.palette import GREY, MethodStyle
from tokenprune.drawing.points import Chart, Charts
from tokenprune.drawing.rows import band_tooltip, point_row, point_tooltip, powers, quantity_scale, row
from tokenprune.drawing.vega import SHOWN, SOFT, Json, channels, faded, marker, on_page

#: Height of a row in pixels.
ROW = 20


@dataclass(frozen=True)
class Ranking:
    """A chart per budget."""

    def draw(self, charts: Charts, styles: Mapping[str, MethodStyle]) -> list[Chart]:
        """Draw the charts of all budgets for a page."""
        found = []
        for number, budget in enumerate(charts.budgets):
            order = [point.method for point in charts.points if point.budget == budget]
            label = f"{charts.name} with {budget}"
            names = {"labelLimit": {"expr": "min(300, 0.45 * containerSize()[0])"}}
            spec = {**self.panel(charts, styles, budget, order, axis=names, size=90), "padding": {"right": 45}}
            found.append(
                Chart(
                    f"ranking-{number}",
                    label[:1].upper() + label[1:],
                    f"{label}, candidate by candidate, with 95 % intervals. The table has the same numbers.",
                    on_page(spec, ROW * len(order) + 10, label, charts.methods, **bold(charts)),
                )
            )
        return found

    def panel(
        self,
        charts: Charts,
        styles: Mapping[str, MethodStyle],
        budget: str,
        order: Sequence[str],
        axis: Json | None,
        size: int = 50,
        width: int = 0,
    ) -> Json:
        """Draw the methods of one budget.

        Args:
            charts: The points.
            styles: The style of every method.
            budget: The budget.
            order: The methods from the top.
            axis: Further settings of the axis with the names; None for no axis.
            size: Area of a mark in square pixels.
            width: Width in pixels, for a file: there each method of the order has a row, also without a point.
        """
        scale, channel, place = quantity_scale(charts), channels(styles), {name: at for at, name in enumerate(order)}
        number = charts.budgets.index(budget)
        rows = [
            {**point_row(point, scale), "place": place[point.method], "cost": f"{point.average:.1f}"}
            for point in charts.points
            if point.budget == budget and math.isfinite(point.mean)
        ]
        weight = {
            "condition": {"test": f"indexof(bold[{number}], datum.value) >= 0", "value": "bold"},
            "value": "normal",
        }
        y: Json = {
            "field": "method",
            "type": "nominal",
            "title": None,
            "axis": axis and {"labelFontWeight": weight, "grid": True, **axis},
            **(
                {"sort": None, "scale": {"domain": list(order)}} if width else {"sort": {"field": "place", "op": "min"}}
            ),
        }
        x = scale.channel("mean", charts.quantity, powers(scale), tickCount=5)
        ends = {"x": {**x, "field": "low"}, "x2": {"field": "high"}}
        bands = [row(item, scale) for item in charts.references if item.budget in ("", budget)]
        layers: list[Json] = [
            {
                "data": {"values": bands},
                "transform": [{"filter": SHOWN}],
                "mark": {"type": "rect", "color": GREY, "opacity": 0.2},
                "encoding": {**ends, "tooltip": band_tooltip(charts)},
            },
            {
                "transform": [{"filter": "datum.role === 'random'"}],
                "mark": {"type": "rule", "color": GREY, "strokeDash": [1, 3]},
                "encoding": {"x": x},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 1.5},
                "encoding": {**ends, "y": y, "color": channel["color"], "opacity": faded(0.7)},
            },
            marker(size, channel, x=x, y=y, opacity=faded(1.0), tooltip=point_tooltip(charts)),
            {
                "mark": {"type": "text", "align": "left", "baseline": "middle", "dx": 8, "color": SOFT},
                "encoding": {"x": {"value": "width"}, "y": y, "text": {"field": "cost"}},
            },
            {
                "data": {"values": [{}]},
                "mark": {"type": "text", "align": "left", "dx": 8, "color": SOFT},
                "encoding": {"x": {"value": "width"}, "y": {"value": -5}, "text": {"value": "cost"}},
            },
        ]
        spec: Json = {"data": {"values": rows}, "transform": [{"filter": SHOWN}], "layer": layers}
        size_of_file = {
            "width": width,
            "height": ROW * len(order),
            "title": {"text": budget, "fontSize": 13, "fontWeight": "normal"},
        }
        return {**spec, **size_of_file} if width else spec


def bold(charts: Charts) -> dict[str, list[list[str]]]:
    """A signal: which names of each budget are bold."""
    return {
        "bold": [
            [point.method for point in charts.points if point.strong and point.budget == budget]
            for budget in charts.budgets
        ]
    }
