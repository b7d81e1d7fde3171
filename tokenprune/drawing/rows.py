"""The data of charts: a row per point or band, JSON-ready, and the axis of what was measured."""

from __future__ import annotations

import math
from typing import Any

from tokenprune.drawing.points import Charts, Point, Reference
from tokenprune.drawing.vega import Json, Scale, tooltip

#: Points of a percentage that an axis spans at least: differences of one or two should not fill it.
LEAST_SPAN = 10.0


def quantity_scale(charts: Charts) -> Scale:
    """The axis of what was measured: all intervals that are finite, and a little more."""
    items: list[Any] = [item for one in (charts, *charts.beside) for item in (*one.points, *one.references)]
    values = [end for item in items for end in (item.low, item.mean, item.high) if math.isfinite(end)] or [0.0, 1.0]
    if charts.log:
        positive = [item.mean for item in items if item.mean > 0] or [1.0]
        return Scale(min(positive) / 2, max(*values, *positive) * 1.2, log=True)
    low, high = min(values), max(values)
    smallest, largest = charts.bounds
    least = 0.0 if largest is None else LEAST_SPAN
    margin = max(0.04 * (high - low), (least - (high - low)) / 2) or 1.0
    low, high = low - margin, high + margin
    return Scale(low if smallest is None else max(low, smallest), high if largest is None else min(high, largest))


def powers(scale: Scale) -> list[float]:
    """The ticks of what was measured: on a logarithmic axis the powers of ten."""
    return scale.nice((1,))


def row(item: Point | Reference, scale: Scale) -> Json:
    """The name and the numbers of a point or band; its interval is cut to what the axis shows."""
    return {
        "method": item.method,
        "budget": item.budget,
        "mean": item.mean,
        "low": min(max(item.low, scale.low), scale.high),
        "high": min(max(item.high, scale.low), scale.high),
        "value": f"{item.mean:.4g} ({item.low:.4g} to {item.high:.4g})",
        "tokens": _known(item.visual),
    }


def point_row(point: Point, scale: Scale) -> Json:
    """A row with all that a point's mark and tooltip say."""
    saved = point.flops_reduction
    return {
        **row(point, scale),
        "average": _known(point.average),
        "flops": "unknown" if math.isnan(saved) else f"-{100 * saved:.1f} %",
        "role": point.role,
        "hollow": point.hollow,
    }


def _known(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.1f}"


def point_tooltip(charts: Charts) -> list[Json]:
    """The tooltip of a point."""
    return tooltip(
        method="method",
        budget="budget",
        value=charts.quantity,
        tokens="visual tokens kept",
        average="layer average",
        flops="FLOPs",
    )


def band_tooltip(charts: Charts) -> list[Json]:
    """The tooltip of a band."""
    return tooltip(method="method", value=charts.quantity, tokens="visual tokens")
