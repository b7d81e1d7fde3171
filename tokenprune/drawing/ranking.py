"""The measured quantity at one budget: a row per method with its mark, its interval, and its cost at the right."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenprune.drawing.palette import GREY, MethodStyle
from tokenprune.drawing.points import Chart, Charts
from tokenprune.drawing.vega import SHOWN, SOFT, Json, channels, faded, figure, layer, markers, on_page

#: Height of a row in pixels.
ROW = 20
#: Pixels that a chart needs at least.
LEAST_WIDTH = 320


@dataclass(frozen=True)
class Ranking:
    """A chart per budget."""

    def draw(self, charts: Charts, styles: Mapping[str, MethodStyle]) -> list[Chart]:
        """Draw the charts of all budgets for a page."""
        found = []
        for budget in charts.budgets:
            order = _methods(charts, budget)
            title = f"{charts.title} with {budget}"
            panel = self.panel(
                charts, styles, budget, order, labelLimit={"expr": "min(300, 0.45 * containerSize()[0])"}
            )
            spec = {**panel, "padding": {"right": 45}}
            page = on_page(spec, ROW * len(order) + 10, title, charts.methods, bold=_bold(charts))
            found.append(Chart(title, page, LEAST_WIDTH))
        return found

    def figure(
        self,
        charts: Charts,
        styles: Mapping[str, MethodStyle],
        notes: Sequence[str],
        columns: int,
        order: Sequence[str] | None = None,
        titles: Mapping[str, str] | None = None,
    ) -> Json:
        """Draw a panel per budget for a file.

        Args:
            charts: The points.
            styles: The style of every method.
            notes: Small text below the panels.
            columns: Panels side by side.
            order: The methods from the top, the same in all panels; None for those of each budget.
            titles: Budget -> title of its panel; the budgets by default.
        """
        width, panels = 200 if columns > 1 else 520, []
        for number, budget in enumerate(charts.budgets):
            labels = {"labelLimit": 300, "labels": order is None or number % columns == 0}
            rows = order or _methods(charts, budget)
            panel = self.panel(charts, styles, budget, rows, width, **labels)
            panels.append({**panel, "title": (titles or {}).get(budget, budget)})
        spec = {"concat": panels, "columns": columns, "spacing": {"row": 20, "column": 12}}
        return figure(spec, notes, charts.methods, bold=_bold(charts))

    def panel(
        self,
        charts: Charts,
        styles: Mapping[str, MethodStyle],
        budget: str,
        order: Sequence[str],
        width: int = 0,
        **axis: object,
    ) -> Json:
        """Draw the methods of one budget.

        Args:
            charts: The points.
            styles: The style of every method.
            budget: The budget.
            order: The methods from the top. In a file each has a row, also without a point.
            width: Width in pixels, for a file; 0 for a page, where it follows from the place.
            axis: Settings of the axis with the names.
        """
        scale, channel, number = charts.scale, channels(styles), charts.budgets.index(budget)
        rows = [
            {**point.row(scale), "place": order.index(point.method), "cost": f"{point.average:.1f}"}
            for point in charts.points
            if point.budget == budget and math.isfinite(point.mean)
        ]
        bands = [band.row(scale) for band in charts.references if band.budget in ("", budget)]
        bold = {"test": f"indexof(bold[{number}], datum.value) >= 0", "value": "bold"}
        names = {"labelFontWeight": {"condition": bold, "value": "normal"}, "grid": True, **axis}
        y: Json = {"field": "method", "type": "nominal", "title": None, "axis": names}
        y |= {"sort": None, "scale": {"domain": list(order)}} if width else {"sort": {"field": "place", "op": "min"}}
        x = scale.channel("mean", charts.quantity, scale.round_numbers(), tickCount=5)
        ends = {"x": {**x, "field": "low"}, "x2": {"field": "high"}}
        right: Json = {"x": {"value": "width"}}
        cost: Json = {"align": "left", "baseline": "middle", "dx": 8, "color": SOFT}
        chance = [{"filter": "datum.role === 'random'"}]
        layers = [
            layer("rect", {**ends, "tooltip": charts.tooltip}, bands, [SHOWN], color=GREY, opacity=0.2),
            layer("rule", {"x": x}, steps=chance, color=GREY, strokeDash=[1, 3]),
            layer("rule", {**ends, "y": y, "color": channel["color"], "opacity": faded(0.7)}, strokeWidth=1.5),
            markers(50 if width else 90, channel, x=x, y=y, opacity=faded(1.0), tooltip=charts.tooltip),
            layer("text", {**right, "y": y, "text": {"field": "cost"}}, **cost),
            layer("text", {**right, "y": {"value": -8}, "text": {"value": "cost"}}, [{}], **cost),
        ]
        size = {"width": width, "height": ROW * len(order)} if width else {}
        return {"data": {"values": rows}, "transform": [SHOWN], "layer": layers, **size}


def _methods(charts: Charts, budget: str) -> list[str]:
    return [point.method for point in charts.points if point.budget == budget]


def _bold(charts: Charts) -> list[list[str]]:
    """The bold names of each budget."""
    strong = [point for point in charts.points if point.strong]
    return [[point.method for point in strong if point.budget == budget] for budget in charts.budgets]
