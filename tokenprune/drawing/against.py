"""The measured quantity against a cost: a mark with its interval per method and budget, a line along the budgets."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tokenprune.drawing.palette import GREY, MethodStyle
from tokenprune.drawing.points import Chart, Charts, Point
from tokenprune.drawing.vega import SHOWN, Json, Scale, channels, faded, layer, markers, on_page, spread

#: Costs that spread over more than this factor have a logarithmic axis.
WIDE = 2.5
#: Costs of so few different values have a tick at each.
FEW = 8
#: Methods on a page whose lines are drawn; more would be a tangle.
MOST_LINES = 8
#: Height of a chart, and width of one in a file, in pixels.
HEIGHT, WIDTH = 330, 400
#: Height of a line's name, and of the fan from the true costs to the marks, in pixels.
NAME, FAN = 16, 18
#: The colour of methods that are not among the best.
FAINT = "#CCCCCC"


@dataclass(frozen=True)
class Against:
    """A chart of the measured quantity against a cost.

    Attributes:
        name: The cost in a few words.
        title: The title of its axis.
        cost: The cost of a point; NaN where it is unknown.
    """

    name: str
    title: str
    cost: Callable[[Point], float]

    def draw(self, charts: Charts, styles: Mapping[str, MethodStyle]) -> list[Chart]:
        """Draw the chart for a page; none if all costs are unknown."""
        count = len(self._rows(charts))
        title = f"{charts.title} against {self.name}"
        spec = on_page(self.panel(charts, styles), HEIGHT, title, charts.methods)
        return [Chart(title, spec, least_width=min(900, 4 * count + 90))] if count else []

    def panel(
        self,
        charts: Charts,
        styles: Mapping[str, MethodStyle],
        width: int = 0,
        faint: Sequence[str] = (),
        named: bool = False,
    ) -> Json:
        """Draw bands, the front, lines, intervals, and at last marks.

        Points of equal cost stand side by side, so that their intervals can be told apart. A fan above the axis shows
        that this is no difference in cost: from the true cost a line goes to each mark, those of equal costs from one
        place.

        Args:
            charts: The points.
            styles: The style of every method.
            width: Width in pixels, for a file; 0 for a page, where it follows from the place.
            faint: Methods that are drawn as light lines, without marks.
            named: Whether each of the other lines has its name at its right end.
        """
        channel, (scale, ticks), up = channels(styles), self._scale(charts), charts.scale
        rows = [row for row in self._rows(charts) if row["method"] not in faint]
        size, gap, lines = 90, "clamp(0.4 * width / datum.count, 6, 22) / width", f"length(on) <= {MOST_LINES}"
        if width:
            size, gap, lines = 50, str(4 / width), "true"
        x = scale.channel("x", self.title, ticks, grid=False, tickCount=8)
        y = up.channel("mean", charts.quantity, up.round_numbers())
        places = {"x": x, "y": y, "order": {"field": "order", "type": "quantitative"}}
        ends = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
        line = {"color": channel["color"], "strokeDash": channel["strokeDash"], "opacity": faded(0.7)}
        bands = [band.row(up) for band in charts.references if not band.budget]
        light = [row for row in self._rows(charts) if row["method"] in faint]
        by_method = {"x": {**x, "field": "cost"}, "detail": {"field": "method"}}
        height = max(HEIGHT, NAME * len({row["method"] for row in rows}))
        bottom = height if width else HEIGHT
        fan = {"x": {**x, "field": "cost"}, "x2": {"field": "x"}, "y": {"value": bottom}, "y2": {"value": bottom - FAN}}
        stem = {"x": x, "y": {**y, "field": "low"}, "y2": {"value": bottom - FAN}}
        layers = [
            layer("rect", {**ends, "tooltip": charts.tooltip}, bands, [SHOWN], color=GREY, opacity=0.2),
            layer("rule", {"y": y}, bands, [SHOWN], color=GREY),
            layer("line", places | by_method, light, strokeWidth=1, color=FAINT, point={"size": 12, "color": FAINT}),
            layer("line", {"x": x, "y": y}, steps=[{"filter": "datum.front"}], color=GREY, interpolate="step-after"),
            layer("rule", {**fan, "color": channel["color"], "opacity": faded(0.7)}),
            layer("rule", {**stem, "color": channel["color"], "opacity": faded(0.4)}, strokeDash=[1, 4]),
            layer("line", places | line, steps=[{"filter": lines}], strokeWidth=1.5),
            layer("rule", {"x": x, **ends, "color": channel["color"], "opacity": faded(0.6)}, strokeWidth=1.5),
            markers(size, channel, x=x, y=y, opacity=faded(1.0), tooltip=charts.tooltip),
        ]
        return {
            "data": {"values": rows},
            "transform": [
                SHOWN,
                *spread(scale.share("datum.cost"), gap, "0.03", "0.97", "place"),
                {"calculate": scale.value("datum.place"), "as": "x"},
            ],
            "layer": [*layers, _names(y, up, height, channel)] if named else layers,
            **({"width": width, "height": height} if width else {}),
        }

    def _rows(self, charts: Charts) -> list[Json]:
        """The points whose numbers are known; a line goes from budget to budget, so by the layer average."""
        return [
            {
                **point.row(charts.scale),
                "cost": self.cost(point),
                "order": self.cost(point) if math.isnan(point.average) else point.average,
                "front": point in charts.front,
            }
            for point in charts.points
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
            margin = max(margin, 0.05 * min(1.0, abs(high)))  # a tick is rounded by at most so much, and must fit
            scale = Scale(max(0.0, low - margin), high + margin)
        return scale, _few(costs) or scale.round_numbers((1, 2, 3, 5, 7))


def _few(costs: Iterable[float]) -> list[float]:
    """The values themselves, where a few stand for all; else none."""
    centres: list[list[float]] = []
    for value in sorted(costs):
        if centres and value <= 1.02 * centres[-1][0]:
            centres[-1].append(value)
        else:
            centres.append([value])
    if len(centres) > FEW:
        return []
    middles = [sum(group) / len(group) for group in centres]
    return [round(middle, 1) if middle >= 1 else float(f"{middle:.2g}") for middle in middles]


def _names(y: Json, scale: Scale, height: int, channel: Mapping[str, Json]) -> Json:
    """The names of the lines right of a panel, each beside the end of its line, with its mark."""
    wanted = f"{height} * (1 - {scale.share('datum.mean')})"
    last: list[Json] = [
        {"joinaggregate": [{"op": "max", "field": "x", "as": "last"}], "groupby": ["method"]},
        {"filter": "datum.x >= datum.last"},
        *spread(wanted, str(NAME), f"-{NAME / 2}", f"{height + NAME / 2}", "place"),
        {"calculate": scale.value(f"(1 - datum.place / {height})"), "as": "beside"},
    ]
    beside, x = {**y, "field": "beside"}, {"x": {"field": "x", "type": "quantitative"}, "x2": {"value": WIDTH + 14}}
    text = {"x": {"value": WIDTH + 31}, "y": beside, "text": {"field": "method"}}
    layers = [
        layer("rule", {**x, "y": y, "y2": {"field": "beside"}, "color": channel["color"]}, strokeWidth=0.7),
        markers(50, channel, x={"value": WIDTH + 22}, y=beside),
        layer("text", text, align="left", baseline="middle", fontSize=12),
    ]
    return {"transform": last, "layer": layers}


VISUAL = Against("visual tokens kept", "visual tokens kept", lambda point: point.visual)
AVERAGE = Against("layer average", "layer average (visual tokens per layer)", lambda point: point.average)
FLOPS = Against("FLOPs", "prefill FLOPs, % of the unpruned model", lambda point: 100 * (1 - point.flops_reduction))
#: The charts against a cost. A new one is an object here.
COSTS = (VISUAL, AVERAGE, FLOPS)
