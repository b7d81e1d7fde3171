"""The measured quantity against a cost: a mark with its interval per method and budget, a line along the budgets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tokenprune.drawing.palette import GREY, MethodStyle
from tokenprune.drawing.points import Chart, Charts, Point
from tokenprune.drawing.rows import band_tooltip, point_row, point_tooltip, powers, quantity_scale, row
from tokenprune.drawing.vega import SHOWN, Json, Scale, channels, faded, marker, on_page, spread

#: Costs that spread over more than this factor have a logarithmic axis.
WIDE = 2.5
#: Costs of so few different values have a tick at each.
FEW = 8
#: Methods on a page whose lines are drawn; more would be a tangle.
MOST_LINES = 8
#: Points of a chart that may stand beside others, at most.
NARROW = 24
#: Height of a chart, and width of one in a file, in pixels.
HEIGHT, WIDTH = 330, 400
#: Height of a line's name in pixels.
NAME = 16
#: The colour of methods that are not among the best.
FAINT = "#CCCCCC"
#: A line goes from budget to budget.
ORDER = {"field": "order", "type": "quantitative"}


@dataclass(frozen=True)
class Against:
    """A chart of the measured quantity against a cost.

    Attributes:
        id: A word for it.
        name: The cost in a few words.
        title: The title of its axis.
        cost: The cost of a point; NaN where it is unknown.
    """

    id: str
    name: str
    title: str
    cost: Callable[[Point], float]

    def draw(self, charts: Charts, styles: Mapping[str, MethodStyle]) -> list[Chart]:
        """Draw the chart for a page; none if all costs are unknown."""
        rows = self._rows(charts, charts.points)
        if not rows:
            return []
        label = f"{charts.name} against {self.name}"
        gap, lines = "clamp(0.4 * width / datum.count, 6, 22)", f"length(on) <= {MOST_LINES}"
        spec = self._spec(charts, rows, styles, "width", gap=gap, lines=lines, size=90)
        return [
            Chart(
                self.id,
                label[:1].upper() + label[1:],
                f"{label}, with 95 % intervals. The table has the same numbers.",
                on_page(spec, HEIGHT, label, charts.methods),
                least_width=min(900, 4 * len(rows) + 90),
                narrow=len(rows) <= NARROW,
            )
        ]

    def panel(
        self, charts: Charts, styles: Mapping[str, MethodStyle], faint: Sequence[str] = (), named: bool = False
    ) -> Json:
        """Draw a panel of a file.

        Args:
            charts: The points.
            styles: The style of every method.
            faint: Methods that are drawn as light lines, without marks.
            named: Whether each of the other lines has its name at its right end.
        """
        rows = self._rows(charts, [point for point in charts.points if point.method not in faint])
        spec = self._spec(charts, rows, styles, str(WIDTH), gap="4", lines="true", size=50)
        height = max(HEIGHT, NAME * len({found["method"] for found in rows}))
        light = {
            "data": {"values": self._rows(charts, [point for point in charts.points if point.method in faint])},
            "mark": {"type": "line", "strokeWidth": 1, "color": FAINT, "point": {"size": 12, "color": FAINT}},
            "encoding": {**self._places(charts, x="cost"), "detail": {"field": "method"}, "order": ORDER},
        }
        names = _names(self._places(charts)["y"], quantity_scale(charts), height, styles) if named else []
        return {**spec, "layer": [light, *spec["layer"], *names], "width": WIDTH, "height": height}

    def _rows(self, charts: Charts, points: Iterable[Point]) -> list[Json]:
        scale = quantity_scale(charts)
        return [
            {
                **point_row(point, scale),
                "cost": (cost := self.cost(point)),
                "order": cost if math.isnan(point.average) else point.average,
                "front": point in charts.front,
            }
            for point in points
            if math.isfinite(point.mean) and not math.isnan(self.cost(point))
        ]

    def _scale(self, charts: Charts) -> tuple[Scale, list[float]]:
        """The axis of the cost, and its ticks."""
        every = [self.cost(point) for one in (charts, *charts.beside) for point in one.points]
        costs = [cost for cost in every if not math.isnan(cost)] or [0.0, 1.0]
        low, high = min(costs), max(costs)
        if low > 0 and high > WIDE * low:
            free = (high / low) ** 0.12
            scale = Scale(low / free, high * free, log=True)
        else:
            margin = 0.15 * (high - low) or 0.2 * abs(high) or 1.0
            scale = Scale(max(0.0, low - margin), high + margin)
        return scale, _few(costs) or scale.nice()

    def _places(self, charts: Charts, x: str = "x") -> dict[str, Json]:
        """Encode where a point is."""
        scale, ticks = self._scale(charts)
        height = quantity_scale(charts)
        across = scale.channel(x, self.title, ticks, grid=False, tickCount=8)
        return {"x": across, "y": height.channel("mean", charts.quantity, powers(height))}

    def _spec(
        self,
        charts: Charts,
        rows: Sequence[Json],
        styles: Mapping[str, MethodStyle],
        width: str,
        gap: str,
        lines: str,
        size: int,
    ) -> Json:
        """Draw bands, the front, lines, intervals, and at last marks; points of equal cost stand side by side.

        Args:
            charts: The points.
            rows: Those that are drawn.
            styles: The style of every method.
            width: The width in pixels, as an expression.
            gap: Pixels between points of equal cost, as an expression.
            lines: Whether lines are drawn, as an expression.
            size: Area of a mark in square pixels.
        """
        scale, _ = self._scale(charts)
        places, channel = self._places(charts), channels(styles)
        interval = {**places, "y": {**places["y"], "field": "low"}, "y2": {"field": "high"}}
        front = {"type": "line", "strokeWidth": 1.5, "color": GREY, "interpolate": "step-after"}
        line = {"color": channel["color"], "strokeDash": channel["strokeDash"], "opacity": faded(0.7), "order": ORDER}
        layers: list[Json] = [
            *_bands(charts, places["y"]),
            {"transform": [{"filter": "datum.front"}], "mark": front, "encoding": places},
            {
                "transform": [{"filter": lines}],
                "mark": {"type": "line", "strokeWidth": 1.5},
                "encoding": {**places, **line},
            },
            {
                "mark": {"type": "rule", "strokeWidth": 1.5},
                "encoding": {**interval, "color": channel["color"], "opacity": faded(0.6)},
            },
            marker(size, channel, **places, opacity=faded(1.0), tooltip=point_tooltip(charts)),
        ]
        moved = spread(scale.share("datum.cost"), f"{gap} / {width}", "0.03", "0.97", "place")
        return {
            "data": {"values": list(rows)},
            "transform": [{"filter": SHOWN}, *moved, {"calculate": scale.value("datum.place"), "as": "x"}],
            "layer": layers,
        }


def _few(costs: Iterable[float]) -> list[float]:
    """The values themselves, where a few stand for all; else none."""
    centres: list[list[float]] = []
    for value in sorted(costs):
        if centres and value <= 1.02 * centres[-1][0]:
            centres[-1].append(value)
        else:
            centres.append([value])
    return [round(sum(group) / len(group), 1) for group in centres] if len(centres) <= FEW else []


def _bands(charts: Charts, y: Json) -> list[Json]:
    """A band per reference, from side to side, with a line at its mean."""
    bands = [row(item, quantity_scale(charts)) for item in charts.references if not item.budget]
    data: Json = {"data": {"values": bands}, "transform": [{"filter": SHOWN}]}
    ends = {"y": {**y, "field": "low"}, "y2": {"field": "high"}, "tooltip": band_tooltip(charts)}
    return [
        {**data, "mark": {"type": "rect", "color": GREY, "opacity": 0.2}, "encoding": ends},
        {**data, "mark": {"type": "rule", "color": GREY}, "encoding": {"y": y}},
    ]


def _names(y: Json, scale: Scale, height: int, styles: Mapping[str, MethodStyle]) -> list[Json]:
    """The names of the lines right of a panel, each beside the end of its line, with its mark."""
    top = f"{height} * (1 - {scale.share('datum.mean')})"
    last: list[Json] = [
        {"joinaggregate": [{"op": "max", "field": "x", "as": "last"}], "groupby": ["method"]},
        {"filter": "datum.x >= datum.last"},
        *spread(top, str(NAME), f"-{NAME / 2}", f"{height + NAME / 2}", "name_place"),
        {"calculate": scale.value(f"(1 - datum.name_place / {height})"), "as": "name_y"},
    ]
    channel = channels(styles)
    start, y = {"x": {"field": "x", "type": "quantitative"}, "y": y}, {**y, "field": "name_y"}
    end = {"x2": {"value": WIDTH + 14}, "y2": {"field": "name_y"}}
    return [
        {
            "transform": last,
            "layer": [
                {
                    "mark": {"type": "rule", "strokeWidth": 0.7, "opacity": 0.7},
                    "encoding": {**start, **end, "color": channel["color"]},
                },
                marker(50, channel, x={"value": WIDTH + 22}, y=y),
                {
                    "mark": {"type": "text", "align": "left", "baseline": "middle", "fontSize": 12},
                    "encoding": {"x": {"value": WIDTH + 31}, "y": y, "text": {"field": "method"}},
                },
            ],
        }
    ]


#: The charts against a cost. A new one is a line here.
COSTS = (
    Against("visual", "visual tokens kept", "visual tokens kept", lambda point: point.visual),
    Against("average", "layer average", "layer average (visual tokens per layer)", lambda point: point.average),
    Against(
        "flops", "FLOPs", "prefill FLOPs, % of the unpruned model", lambda point: 100 * (1 - point.flops_reduction)
    ),
)
