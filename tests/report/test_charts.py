"""The specifications of the charts, and the rows that the browser draws."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from tokenprune.report.charts import MARKERS, chart_specs, cost, library, references, rows, vega_lite

from tests.report.pages import page
from tokenprune.drawing.palette import MARKERS as PALETTE
from tokenprune.drawing.palette import styles
from tokenprune.report.page import Charts, Point


def charts() -> Charts:
    found = page(["fastv", "random"], shown=()).charts
    assert found is not None
    return found


def encodings(spec: object, channel: str) -> list[dict[str, object]]:
    """All encodings of a channel in a specification."""
    found: list[dict[str, object]] = []
    if isinstance(spec, dict):
        found += [spec["encoding"][channel]] if channel in spec.get("encoding", {}) else []
        spec = list(spec.values())
    if isinstance(spec, list):
        for item in spec:
            found += encodings(item, channel)
    return found


def test_every_marker_of_the_palette_is_drawn() -> None:
    assert set(PALETTE) <= set(MARKERS)
    assert len(set(MARKERS.values())) == len(MARKERS)


def test_colours_and_markers_are_the_palette_s() -> None:
    style = styles(["fastv", "random"])
    for chart in chart_specs(charts(), style):
        for colour in encodings(chart["spec"], "color"):
            scale = dict(zip(colour["scale"]["domain"], colour["scale"]["range"], strict=True))  # type: ignore[index]
            assert scale == {name: item.colour for name, item in style.items()}
        (shape,) = encodings(chart["spec"], "shape")
        scale = dict(zip(shape["scale"]["domain"], shape["scale"]["range"], strict=True))  # type: ignore[index]
        assert scale == {name: MARKERS[item.marker] for name, item in style.items()}


def test_no_name_stands_in_an_expression() -> None:
    """Expressions are code: names of methods are data."""
    name = "x'); alert(1); ('"
    made = replace(charts(), points=(Point(name, name, 50.0, 40.0, 60.0, 8.0, 9.0, 0.5),))
    for chart in chart_specs(made, styles([name])):
        text = json.dumps([chart["spec"].get(part) for part in ("params", "transform")])
        assert "alert" not in text
        for condition in encodings(chart["spec"], "opacity"):
            assert "alert" not in json.dumps(condition)


def test_costs() -> None:
    point = Point("a", "b", 50.0, 40.0, 60.0, 16.0, 20.0, 0.75)
    assert [cost(point, kind) for kind in ("visual", "average", "flops")] == [16.0, 20.0, 25.0]
    assert math.isnan(cost(point, "ranking"))


@pytest.mark.parametrize(("costs", "log"), [((8.0, 64.0), True), ((30.0, 64.0), False), ((16.0, 16.0), False)])
def test_the_axis_of_costs(costs: tuple[float, float], log: bool) -> None:
    points = tuple(Point("a", str(number), 50.0, 40.0, 60.0, value) for number, value in enumerate(costs))
    (chart,) = chart_specs(Charts("accuracy, %", points, ("visual", "flops")), styles(["a"]))
    low, high = chart["domain"]
    assert chart["log"] == log
    assert low < min(costs) <= max(costs) < high


def test_intervals_are_cut_to_what_is_possible() -> None:
    points = (Point("a", "b", 99.0, -math.inf, math.inf, 8.0), Point("c", "b", 60.0, 50.0, 70.0, 8.0))
    first, second = rows(Charts("accuracy, %", points, ("visual",)))
    assert (second["low"], second["high"]) == (50.0, 70.0)
    assert first["low"] < 50.0
    assert 99.0 < first["high"] <= 100.0
    assert first["cost"] == {"visual": 8.0}


def test_bands_and_fronts() -> None:
    made = charts()
    (band,) = references(made)
    assert (band["method"], band["mean"], band["low"], band["high"]) == ("unpruned", 95.0, 94.0, 96.0)
    with_front = replace(made, front=made.points[:1])
    assert [row["front"] for row in rows(with_front)] == [True, False, False, False]


def test_a_ranking_has_a_chart_per_budget() -> None:
    made = replace(charts(), kinds=("ranking",))
    specs = chart_specs(made, styles(["fastv", "random"]))
    assert [chart["budget"] for chart in specs] == ["keep 64", "keep 8"]


@pytest.mark.parametrize(("wanted", "version"), [("v6.4.1", "6.4"), ("v5.20.1", "5.20"), ("v6.9.0", "6.4")])
def test_the_library_fits_the_specifications(wanted: str, version: str) -> None:
    assert vega_lite(wanted, ["5.8", "5.20", "6.1", "6.4"]) == version


def test_the_library_ends_no_script() -> None:
    text = library()
    assert "vegaEmbed" in text
    assert "</script" not in text
    assert library() is text  # made once per process
