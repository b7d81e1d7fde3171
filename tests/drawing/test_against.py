"""Charts against a cost, as a page gets them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from tests.report.pages import page
from tests.support.scenes import marks
from tokenprune.drawing.against import COSTS, FAN, FLOPS, HEIGHT, VISUAL, Against, _few
from tokenprune.drawing.palette import styles
from tokenprune.drawing.points import Charts, Point
from tokenprune.drawing.vega import Json, figure, save
from tokenprune.report.html import render


def charts() -> Charts:
    found = page(["fastv", "random"], shown=()).charts
    assert found is not None
    return found


def drawn(made: Charts) -> Json:
    """The specification of a chart, with a width as if it were in a page."""
    (chart,) = VISUAL.draw(made, styles(made.methods))
    return {**chart.spec, "width": 500}


def test_colours_and_markers_are_the_palette_s() -> None:
    made = charts()
    style = styles(made.methods)
    found = {(item["fill"], item["shape"]) for item in marks(drawn(made), "symbol")}
    assert found == {(style[name].colour, style[name].marker) for name in ("fastv", "random")}


def test_no_name_stands_in_an_expression() -> None:
    """Expressions are code: names of methods are data."""
    name = "x'); alert(1); ('"
    made = replace(charts(), points=(Point(name, name, 50.0, 40.0, 60.0, 8.0, 9.0, 0.5),))
    spec = drawn(made)

    def expressions(part: object) -> list[object]:
        if isinstance(part, list):
            return [found for item in part for found in expressions(item)]
        if not isinstance(part, dict):
            return []
        own = [part[key] for key in ("calculate", "filter", "test", "expr", "labelExpr") if key in part]
        return own + [found for item in part.values() for found in expressions(item)]

    assert len(expressions(spec)) > 8
    assert "alert" not in json.dumps(expressions(spec))
    assert "alert" in json.dumps(spec["data"])


def test_costs() -> None:
    point = Point("a", "b", 50.0, 40.0, 60.0, 16.0, 20.0, 0.75)
    assert [item.cost(point) for item in COSTS] == [16.0, 20.0, 25.0]


@pytest.mark.parametrize(("costs", "log"), [((8.0, 64.0), True), ((30.0, 64.0), False), ((16.0, 16.0), False)])
def test_the_axis_of_costs(costs: tuple[float, float], log: bool) -> None:
    points = tuple(Point("a", str(number), 50.0, 40.0, 60.0, value) for number, value in enumerate(costs))
    made = Charts("accuracy, %", points, COSTS)
    assert FLOPS.draw(made, styles(["a"])) == []  # all are unknown
    scale = drawn(made)["layer"][-1]["encoding"]["x"]["scale"]
    low, high = scale["domain"]
    assert (scale["type"] == "log") == log
    assert low < min(costs) <= max(costs) < high


def test_intervals_are_cut_to_what_is_possible() -> None:
    points = (Point("a", "b", 99.0, -math.inf, math.inf, 8.0), Point("c", "b", 60.0, 50.0, 70.0, 8.0))
    first, second = drawn(Charts("accuracy, %", points, COSTS))["data"]["values"]
    assert (second["low"], second["high"]) == (50.0, 70.0)
    assert first["low"] < 50.0
    assert 99.0 < first["high"] <= 100.0
    assert first["cost"] == 8.0


def test_small_differences_do_not_fill_the_height() -> None:
    points = (Point("a", "b", 50.0, 49.9, 50.1, 8.0),)
    low, high = drawn(Charts("accuracy, %", points, COSTS))["layer"][-1]["encoding"]["y"]["scale"]["domain"]
    assert high - low >= 10
    free = replace(Charts("loss, nats", points, COSTS), bounds=(0.0, None))
    low, high = drawn(free)["layer"][-1]["encoding"]["y"]["scale"]["domain"]
    assert high - low < 1


def test_bands_and_fronts() -> None:
    made = charts()
    (band,) = marks(drawn(made), "rect")
    assert "accuracy, %: 94; high: 96; method: unpruned; budget: ; visual tokens kept: 144.0" in band["description"]
    assert marks(drawn(made), "line") != []
    assert {item["stroke"] for item in marks(drawn(made), "line")} == {
        style.colour for style in styles(["fastv", "random"]).values()
    }
    with_front = drawn(replace(made, front=made.points[:2]))
    front = [item for item in marks(with_front, "line") if item.get("interpolate") == "step-after"]
    assert len(front) == 2


def test_lines_are_drawn_for_few_methods() -> None:
    spec = drawn(charts())
    names = [f"m{number}" for number in range(9)]
    params = [{**item, "value": names} if item["name"] == "on" else item for item in spec["params"]]
    rows = [{**row, "method": name} for row in spec["data"]["values"] for name in names]
    many = {**spec, "params": params, "data": {"values": rows}}
    assert len(marks(many, "symbol")) == 4 * 9
    assert marks(many, "line") == []


def test_only_what_is_switched_on_is_drawn() -> None:
    spec = drawn(charts())
    params = [{**item, "value": ["fastv"]} if item["name"] == "on" else item for item in spec["params"]]
    assert len(marks({**spec, "params": params}, "symbol")) == 2
    assert marks({**spec, "params": params}, "rect") == []


def test_a_line_goes_from_budget_to_budget() -> None:
    """Not from cost to cost: a method may keep fewer tokens with more budget."""
    points = [
        Point("a", f"b{at}", 50.0 + at, 40.0, 60.0, visual, 10.0 * at) for at, visual in enumerate((9.0, 30.0, 20.0))
    ]
    lines = marks(drawn(Charts("accuracy, %", tuple(points), COSTS)), "line")
    heights = [item["y"] for item in lines]
    assert heights == sorted(heights, reverse=True)
    assert [item["x"] for item in lines] != sorted(item["x"] for item in lines)


def test_a_new_chart_is_one_object_for_page_and_files(tmp_path: Path) -> None:
    mine = Against("saved work", "saved FLOPs, %", lambda point: 100 * point.flops_reduction)
    made = replace(charts(), kinds=(*COSTS, mine))
    html = render(replace(page(["fastv", "random"], shown=()), charts=made))
    assert '<figcaption id="chart-3-title">Accuracy against saved work</figcaption>' in html
    panel = mine.panel(made, styles(made.methods), width=400, named=True)
    written = save(figure(panel, ["A note."], made.methods), tmp_path / "mine.png")
    assert [path.suffix for path in written] == [".png", ".svg", ".pdf"]
    assert "saved FLOPs, %" in (tmp_path / "mine.svg").read_text()
    assert Image.open(tmp_path / "mine.png").width > 640


def test_ticks_of_small_costs_are_not_rounded_away() -> None:
    """On a logarithmic axis a tick at 0 has no place."""
    assert _few([0.012, 0.026, 0.06]) == [0.012, 0.026, 0.06]
    assert _few([7.0, 15.98, 15.99, 47.0]) == [7.0, 16.0, 47.0]


@pytest.mark.parametrize("costs", [(31.0, 31.067), (0.97, 0.975), (0.104, 0.105), (1.02, 1.04), (16.0, 16.0)])
def test_the_tick_of_costs_that_are_nearly_equal_is_on_the_axis(costs: tuple[float, float]) -> None:
    points = tuple(Point(f"m{cost}", "b", 50.0, 40.0, 60.0, cost) for cost in costs)
    scale, ticks = VISUAL._scale(Charts("accuracy, %", points, COSTS))
    assert ticks
    assert all(scale.low <= tick <= scale.high for tick in ticks)


def test_points_of_equal_cost_stand_side_by_side_on_a_fan_from_their_one_cost() -> None:
    points = tuple(Point(name, "b", 50.0 + place, 40.0, 60.0, 16.0) for place, name in enumerate("abc"))
    spec = drawn(Charts("accuracy, %", (*points, Point("d", "b", 50.0, 40.0, 60.0, 64.0)), COSTS))
    places = sorted(item["x"] for item in marks(spec, "symbol"))
    fan = [item for item in marks(spec, "rule") if {item["y"], item.get("y2")} == {HEIGHT, HEIGHT - FAN}]
    ends = sorted(item.get("x2", item["x"]) for item in fan)
    assert ends == pytest.approx(places)  # one line leads to every mark
    starts = sorted(item["x"] for item in fan)
    assert len(places) == len(set(places)) == 4
    assert starts[0] == starts[1] == starts[2] < starts[3]  # of three marks from one place
    assert starts[0] == pytest.approx(places[1])  # which is where the middle one stands
