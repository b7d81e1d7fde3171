"""Charts of one budget, as a page gets them."""

from __future__ import annotations

from dataclasses import replace

from tests.drawing.test_against import charts
from tests.support.scenes import marks
from tokenprune.drawing.palette import styles
from tokenprune.drawing.points import Chart, Charts, Point
from tokenprune.drawing.ranking import Ranking


def drawn(made: Charts) -> list[Chart]:
    """The charts, with a width as if they were in a page."""
    found = Ranking().draw(made, styles(made.methods))
    return [replace(chart, spec={**chart.spec, "width": 500}) for chart in found]


def test_a_chart_per_budget_with_a_row_per_method() -> None:
    first, second = drawn(charts())
    assert [first.title, second.title] == ["Accuracy with keep 64", "Accuracy with keep 8"]
    for chart in (first, second):
        names = [item["text"] for item in marks(chart.spec, "text", "axis-label") if item["align"] == "right"]
        assert names == ["fastv", "random"]
        assert len(marks(chart.spec, "symbol")) == 2
    assert {item["text"] for item in marks(first.spec, "text")} == {"cost", "138.0"}


def test_names_within_the_noise_are_bold_and_marks_of_early_leavers_hollow() -> None:
    made = charts()
    points = (replace(made.points[0], strong=True), replace(made.points[1], hollow=True), *made.points[2:])
    first, second = drawn(replace(made, points=points))
    weight = {item["text"]: item.get("fontWeight") for item in marks(first.spec, "text", "axis-label")}
    assert (weight["fastv"], weight["random"]) == ("bold", "normal")
    fills = [item["fill"] for item in marks(first.spec, "symbol")]
    assert fills == [styles(["fastv"])["fastv"].colour, "white"]
    assert "bold" not in {item.get("fontWeight") for item in marks(second.spec, "text", "axis-label")}


def test_a_band_of_one_budget_is_in_its_chart_alone() -> None:
    made = replace(charts(), references=(Point("fastv", "keep 8", 80.0, 79.0, 81.0),))
    assert [len(marks(chart.spec, "rect")) for chart in drawn(made)] == [0, 1]
    (against,) = made.kinds[0].draw(made, styles(made.methods))
    assert marks({**against.spec, "width": 500}, "rect") == []
