"""The charts of a report as specifications of Vega-Lite. Needs altair and vl-convert (the extra ``report``).

The browser fills the data in (``templates/page.js``): only it knows which methods are switched on and how wide the page
is, and so how far points of equal cost have to move apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import altair as alt
import vl_convert

from tokenprune.palette import MethodStyle
from tokenprune.report.page import ChartKind, Charts, Point

#: Markers by their names in matplotlib as SVG paths in the square from -1 to 1.
MARKERS = {
    "o": "M-.85,0a.85,.85,0,1,0,1.7,0a.85,.85,0,1,0,-1.7,0Z",
    "s": "M-.75,-.75H.75V.75H-.75Z",
    "^": "M0,-.9L.95,.75H-.95Z",
    "D": "M0,-1L1,0L0,1L-1,0Z",
    "v": "M0,.9L.95,-.75H-.95Z",
    "P": "M-.36,-.95H.36V-.36H.95V.36H.36V.95H-.36V.36H-.95V-.36H-.36Z",
    "X": "M-.9,-.45L-.45,-.9L0,-.45L.45,-.9L.9,-.45L.45,0L.9,.45L.45,.9L0,.45L-.45,.9L-.9,.45L-.45,0Z",
    "*": "M0,-1.2L.31,-.4L1.16,-.37L.5,.17L.72,1L0,.53L-.72,1L-.5,.17L-1.16,-.37L-.31,-.4Z",
    "": "M-.9,-.2H.9V.2H-.9Z",
}
#: Costs that spread over more than this factor have a logarithmic axis.
WIDE = 4.0
#: Costs of so few different values have a tick at each.
FEW = 8
TITLES: dict[ChartKind, tuple[str, str]] = {
    "visual": ("visual tokens kept", "visual tokens kept"),
    "average": ("layer average", "layer average (visual tokens per layer)"),
    "flops": ("FLOPs", "prefill FLOPs, % of the unpruned model"),
    "ranking": ("candidate", ""),
}


def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, which sets ``vegaEmbed`` and needs no network."""
    return _library(".".join(alt.SCHEMA_VERSION.split(".")[:2]))


@cache
def _library(version: str) -> str:
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)).replace(
        "</script", "<\\/script"
    )


def cost(point: Point, kind: ChartKind) -> float:
    """The cost of a point on the axis of a chart; NaN where it is unknown."""
    known = {"visual": point.visual, "average": point.average, "flops": 100 * (1 - point.flops_reduction)}
    return known.get(kind, math.nan)


def chart_specs(charts: Charts, styles: Mapping[str, MethodStyle]) -> list[dict[str, Any]]:
    """What the page needs to draw each chart, JSON-ready.

    Args:
        charts: The charts.
        styles: Colour, marker and dash of every method.

    Returns:
        For each chart its ``id``, ``title``, ``label`` (for readers who do not see it), ``spec``, and for a chart
        against a cost the ends of its axis: ``domain``, ``log``.
    """
    found: list[dict[str, Any]] = []
    for kind in charts.kinds:
        if kind == "ranking":
            for number, budget in enumerate(dict.fromkeys(point.budget for point in charts.points)):
                found.append(_ranking(charts, styles, budget, number))
        elif any(not math.isnan(cost(point, kind)) for point in charts.points):
            found.append(_against_cost(charts, styles, kind))
    return found


def rows(charts: Charts) -> list[dict[str, Any]]:
    """One row per point, JSON-ready: its numbers, its costs by chart, and the words of its tooltip."""
    return [
        {
            "method": point.method,
            "budget": point.budget,
            "mean": point.mean,
            "low": _on_axis(point.low, charts),
            "high": _on_axis(point.high, charts),
            "cost": {kind: None if math.isnan(cost(point, kind)) else cost(point, kind) for kind in charts.kinds},
            "value": f"{point.mean:.4g} ({point.low:.4g} to {point.high:.4g})",
            "tokens": _number(point.visual),
            "average": _number(point.average),
            "flops": "unknown" if math.isnan(point.flops_reduction) else f"-{100 * point.flops_reduction:.1f} %",
            "front": point in charts.front,
        }
        for point in charts.points
    ]


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.1f}"


def _on_axis(value: float, charts: Charts) -> float:
    """An end of an interval, cut to what the axis shows."""
    low, high = _range(charts)
    return min(max(value, low), high)


def _range(charts: Charts) -> tuple[float, float]:
    """The ends of the axis of the measured quantity: all intervals that are finite, and a little more."""
    items: list[Any] = [*charts.points, *charts.references]
    values = [end for item in items for end in (item.low, item.mean, item.high) if math.isfinite(end)] or [0.0, 1.0]
    if charts.log:
        positive = [item.mean for item in items if item.mean > 0] or [1.0]
        return min(positive) / 2, max(*values, *positive) * 1.2
    margin = 0.04 * (max(values) - min(values)) or 1.0
    low, high = min(values) - margin, max(values) + margin
    smallest, largest = charts.bounds
    return (low if smallest is None else max(low, smallest), high if largest is None else min(high, largest))


def _encodings(styles: Mapping[str, MethodStyle]) -> dict[str, Any]:
    """Colour and marker of every method, and the same without the marker for lines."""
    names = list(styles)
    colour = alt.Color(
        "method:N", scale=alt.Scale(domain=names, range=[styles[name].colour for name in names]), legend=None
    )
    paths = [MARKERS.get(styles[name].marker, MARKERS["o"]) for name in names]
    dashes = [[2 * length for length in styles[name].dash] or [1, 0] for name in names]
    return {
        "color": colour,
        "shape": alt.Shape("method:N", scale=alt.Scale(domain=names, range=paths), legend=None),
        "dash": alt.StrokeDash("method:N", scale=alt.Scale(domain=names, range=dashes), legend=None),
    }


def _tooltip(charts: Charts) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("method:N", title="method"),
        alt.Tooltip("budget:N", title="budget"),
        alt.Tooltip("value:N", title=charts.quantity),
        alt.Tooltip("tokens:N", title="visual tokens kept"),
        alt.Tooltip("average:N", title="layer average"),
        alt.Tooltip("flops:N", title="FLOPs"),
    ]


def _faded(shown: float) -> Any:
    """Opacity: the other methods fade while one is pointed at in the list of methods."""
    return alt.condition("focus === '' || focus === datum.method", alt.value(shown), alt.value(0.08))


def references(charts: Charts) -> list[dict[str, Any]]:
    """One row per band, JSON-ready."""
    return [
        {
            "method": item.method,
            "mean": item.mean,
            "low": _on_axis(item.low, charts),
            "high": _on_axis(item.high, charts),
            "value": f"{item.mean:.4g} ({item.low:.4g} to {item.high:.4g})",
            "tokens": _number(item.visual),
        }
        for item in charts.references
    ]


def _bands(charts: Charts, scale: alt.Scale) -> list[Any]:
    """What the points are compared with: a band from side to side, and a line at its mean."""
    if not charts.references:
        return []
    chart = alt.Chart(alt.NamedData("bands"))
    tooltip = [
        alt.Tooltip("method:N", title="method"),
        alt.Tooltip("value:N", title=charts.quantity),
        alt.Tooltip("tokens:N", title="visual tokens"),
    ]
    low, mean = (alt.Y(f"{end}:Q", scale=scale, title=charts.quantity) for end in ("low", "mean"))
    return [
        chart.mark_rect(color="#7F7F7F", opacity=0.2).encode(y=low, y2="high:Q", tooltip=tooltip),
        chart.mark_rule(color="#7F7F7F").encode(y=mean, tooltip=tooltip),
    ]


def _powers(charts: Charts) -> alt.Axis:
    """The axis of the measured quantity. A logarithmic one has its ticks at the powers of ten."""
    if not charts.log:
        return alt.Axis()
    low, high = (math.log10(end) for end in _range(charts))
    values = [10.0**power for power in range(math.ceil(low), math.floor(high) + 1)]
    return alt.Axis(values=values, labelExpr="format(datum.value, '~g')")


def _scale(log: bool, domain: Sequence[float]) -> alt.Scale:
    """An axis with exactly these ends."""
    if log:
        return alt.Scale(type="log", domain=list(domain), nice=False)
    return alt.Scale(type="linear", domain=list(domain), nice=False, zero=False)


def _against_cost(charts: Charts, styles: Mapping[str, MethodStyle], kind: ChartKind) -> dict[str, Any]:
    """The measured quantity against a cost: intervals, points, and lines along the budgets of a method."""
    costs = [value for point in charts.points if not math.isnan(value := cost(point, kind))]
    low, high = min(costs), max(costs)
    log = low > 0 and high > WIDE * low
    if log:
        domain = [low / (high / low) ** 0.12, high * (high / low) ** 0.12]
    else:
        margin = 0.15 * (high - low) or 0.2 * abs(high) or 1.0
        domain = [max(0.0, low - margin), high + margin]
    ticks = _ticks(costs)
    words = "format(datum.value, '.4~g')"  # a format alone would round to the steps of the axis
    axis = alt.Axis(values=ticks, labelExpr=words) if ticks else alt.Axis(labelExpr=words, tickCount=8)
    x = alt.X(
        "x:Q",
        scale=_scale(log, domain),
        axis=axis,
        title=TITLES[kind][1],
    )
    y_scale = _scale(charts.log, _range(charts))
    encodings, tooltip = _encodings(styles), _tooltip(charts)
    y_axis = _powers(charts)
    y = alt.Y("mean:Q", scale=y_scale, axis=y_axis, title=charts.quantity)
    base = alt.Chart(alt.NamedData("points")).encode(color=encodings["color"])
    line = (
        base.transform_filter("datum.line")
        .mark_line(strokeWidth=1.5)
        .encode(x=x, y=y, strokeDash=encodings["dash"], opacity=_faded(0.7))
    )
    whisker = base.mark_rule(strokeWidth=1.5).encode(
        x=x, y=alt.Y("low:Q", scale=y_scale, axis=y_axis, title=charts.quantity), y2="high:Q", opacity=_faded(0.6)
    )
    mark = base.mark_point(filled=True, size=90).encode(
        x=x, y=y, shape=encodings["shape"], opacity=_faded(1.0), tooltip=tooltip
    )
    front = (
        alt.Chart(alt.NamedData("points"))
        .transform_filter("datum.front")
        .mark_line(strokeWidth=1.5, color="#7F7F7F", interpolate="step-after")
        .encode(x=x, y=y)
    )
    layers = [*_bands(charts, y_scale), *([front] if charts.front else []), line, whisker, mark]
    label = f"{_name(charts)} against {TITLES[kind][0]}"
    return {
        "id": kind,
        "title": _capital(label),
        "label": f"{label}, with 95 % intervals. The table has the same numbers.",
        "spec": _finish(layers, 330, label),
        "domain": domain,
        "log": log,
    }


def _ranking(charts: Charts, styles: Mapping[str, MethodStyle], budget: str, number: int) -> dict[str, Any]:
    """The measured quantity, a row per method of one budget."""
    order = [point.method for point in charts.points if point.budget == budget]
    scale = _scale(charts.log, _range(charts))
    encodings = _encodings(styles)
    base = alt.Chart(alt.NamedData("points")).encode(
        color=encodings["color"], y=alt.Y("method:N", sort=order, title=None, axis=alt.Axis(labelLimit=260))
    )
    whisker = base.mark_rule(strokeWidth=1.5).encode(
        x=alt.X("low:Q", scale=scale, axis=_powers(charts), title=charts.quantity), x2="high:Q", opacity=_faded(0.7)
    )
    mark = base.mark_point(filled=True, size=90).encode(
        x=alt.X("mean:Q", scale=scale, axis=_powers(charts), title=charts.quantity),
        shape=encodings["shape"],
        opacity=_faded(1.0),
        tooltip=_tooltip(charts),
    )
    label = f"{_name(charts)} with {budget}"
    return {
        "id": f"ranking-{number}",
        "title": _capital(label),
        "label": f"{label}, candidate by candidate, with 95 % intervals. The table has the same numbers.",
        "spec": _finish([whisker, mark], 20 * len(order) + 10, label),
        "budget": budget,
    }


def _name(charts: Charts) -> str:
    """The measured quantity without its unit."""
    return charts.quantity.partition(",")[0]


def _finish(layers: Sequence[Any], height: int, label: str) -> dict[str, Any]:
    """The specification of layered charts, as wide as its place. Colours of axes are those of the page (CSS)."""
    size = alt.AutoSizeParams(type="fit-x", contains="padding")
    chart = (
        alt.layer(*layers)
        .properties(width="container", height=height, background="transparent", description=label, autosize=size)
        .add_params(alt.param(name="focus", value=""))
        .configure(font="system-ui, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=12, titleFontSize=13, titleFontWeight="normal", labelOverlap=True)
        .configure_axisX(grid=False)
    )
    spec: dict[str, Any] = chart.to_dict()
    return spec


def _ticks(costs: Sequence[float]) -> list[float]:
    """The values themselves, where a few stand for all; else none."""
    centres: list[list[float]] = []
    for value in sorted(costs):
        if centres and value <= 1.02 * centres[-1][0]:
            centres[-1].append(value)
        else:
            centres.append([value])
    return [round(sum(group) / len(group), 1) for group in centres] if len(centres) <= FEW else []


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
