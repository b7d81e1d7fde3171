"""Figures of accuracy: every point is seen, every line is named, no names overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.scenes import Item, beside, figures, marks, overlapping, panels, within
from tests.support.summaries import summary, unpruned, zoo
from tokenprune.drawing.palette import GREY, PLACES, styles
from tokenprune.experiment.plot import BEST, MOST_LINES, accuracy_plot, charts_of, comparison_plot
from tokenprune.experiment.summary import SeriesSummary
from tokenprune.stats.estimate import Estimate

BUDGETS = (16, 32, 64, 96, 128, 192, 256)
REFERENCES = ["oracle", "random", "random-layer-2"]


def drawn(
    rows: Sequence[SeriesSummary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label_free: bool = False
) -> list[Any]:
    """The figures of a table."""
    with figures(monkeypatch) as found:
        accuracy_plot(charts_of(rows, label_free), tmp_path / "accuracy.png")
    return found


def names_of(spec: object) -> list[Item]:
    return [item for item in marks(spec, "text") if item["align"] == "left"]


def value(item: Item, title: str) -> float:
    """A number in a mark's description."""
    parts = dict(part.split(": ", 1) for part in item["description"].split("; "))
    return float(parts[title])


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, MOST_LINES, 25])
def test_lines_are_named_at_their_ends_without_overlaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    methods = list(PLACES[:count])
    spec = drawn(zoo([*methods, *REFERENCES], BUDGETS), tmp_path, monkeypatch)[0]
    cost, tokens = panels(spec)
    texts = names_of(spec)
    coloured = methods if count <= MOST_LINES else methods[:BEST]
    assert {text["text"] for text in texts} == {*coloured, *REFERENCES}
    assert not beside(cost, texts)
    assert len(beside(tokens, texts)) == len(texts)
    assert overlapping(texts) == []
    top, bottom = tokens["y"] - 10, tokens["y"] + tokens["height"] + 10
    assert all(top <= text["y"] <= bottom for text in texts)


def test_many_names_make_the_figure_higher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [f"random-layer-{layer}" for layer in range(40)]
    spec = drawn(zoo(["fastv", *many], BUDGETS), tmp_path, monkeypatch)[0]
    assert {text["text"] for text in names_of(spec)} == {"fastv", *many}
    assert overlapping(names_of(spec)) == []


def test_points_of_one_cost_do_not_hide_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [unpruned(), *(summary(name, accuracy=0.5) for name in PLACES[:8])]
    spec = drawn(rows, tmp_path, monkeypatch)[0]
    for panel in panels(spec):
        places = sorted(item["x"] for item in within(panel, marks(spec, "symbol")))
        assert len(places) == 8
        radius = (50**0.5) / 2
        assert min(b - a for a, b in pairwise(places)) > radius
        assert places[-1] - places[0] < 0.25 * panel["width"]


def test_both_panels_show_the_accuracy_at_the_right_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        unpruned(),
        summary("fastv", "a", 0.25, visual=10.0, average=40.0),
        summary("fastv", "b", 0.75, visual=90.0, average=100.0),
        summary("random", "b", 0.5, visual=50.0, average=70.0),
    ]
    spec = drawn(rows, tmp_path, monkeypatch)[0]
    assert all((tmp_path / f"accuracy.{end}").stat().st_size > 5000 for end in ("png", "svg", "pdf"))
    titles = ["layer average (visual tokens per layer)", "visual tokens kept"]
    points = [[(40, 25), (100, 75), (70, 50)], [(10, 25), (90, 75), (50, 50)]]
    for panel, title, wanted in zip(panels(spec), titles, points, strict=True):
        found = [(value(item, title), value(item, "accuracy, %")) for item in within(panel, marks(spec, "symbol"))]
        assert sorted(found) == [pytest.approx(point) for point in sorted(wanted)]
    assert [item["text"] for item in marks(spec, "text", "axis-title")].count("accuracy, %") == 2
    svg = (tmp_path / "accuracy.svg").read_text()
    assert ">fastv</text>" in svg
    assert "unpruned model (576 tokens)" in svg


def test_agreement_has_no_band_of_the_unpruned_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = drawn([unpruned(), summary("fastv")], tmp_path, monkeypatch, label_free=True)[0]
    assert marks(spec, "rect") == []
    assert "agreement, %" in [item["text"] for item in marks(spec, "text", "axis-title")]
    assert "unpruned" not in (tmp_path / "accuracy.svg").read_text()


def test_colours_are_those_of_the_palette(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ["fastv", "visionzip", "random"]
    spec = drawn(zoo(methods, BUDGETS), tmp_path, monkeypatch)[0]
    wanted = {(style.colour, style.marker) for style in styles(methods).values()}
    for panel in panels(spec):
        found = within(panel, marks(spec, "symbol"))
        assert {(item["fill"], item["shape"]) for item in found} == wanted
    assert styles(methods)["random"].colour == GREY


def test_methods_that_are_not_among_the_best_are_faint_and_named_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = list(PLACES[:12])
    first, second = drawn(zoo(methods, (16, 64)), tmp_path, monkeypatch)
    assert all((tmp_path / f"accuracy-by-budget.{end}").is_file() for end in ("png", "svg", "pdf"))
    assert f"the best first: {', '.join(methods[BEST:])}." in " ".join(first["title"]["text"])
    colours = {styles(methods)[name].colour for name in methods[:BEST]}
    light = {item["stroke"] for item in marks(first, "line")} - colours
    assert len(light) == 1
    assert len([item for item in marks(first, "line") if item["stroke"] in light]) == 2 * 2 * len(methods[BEST:])
    assert len(panels(second)) == 2


def test_the_figure_by_budget_shows_every_method_and_its_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = [*PLACES[:12], "random"]
    rows = [row for row in zoo(methods, BUDGETS) if (row.method, row.budget) != (PLACES[3], "keep_count 32")]
    spec = drawn(rows, tmp_path, monkeypatch)[1]
    titles = [item["text"] for item in marks(spec, "text", "title-text")]
    assert [title for title in titles if str(title).endswith("kept")] == [f"{n} tokens kept" for n in BUDGETS]
    labels = [item for item in marks(spec, "text", "axis-label") if item["text"] in methods]
    order = [item["text"] for item in sorted(labels[: len(methods)], key=lambda item: item["y"])]
    assert order == methods  # the best on top
    for panel, tokens in zip(panels(spec), BUDGETS, strict=True):
        here = {row.method: row for row in rows if row.budget == f"keep_count {tokens}"}
        heights = {name: panel["y"] + 20 * (place + 0.5) for place, name in enumerate(methods)}
        points = {item["y"]: value(item, "accuracy, %") for item in within(panel, marks(spec, "symbol"))}
        costs = {
            item["y"]: item["text"]
            for item in marks(spec, "text")
            if abs(item["x"] - panel["x"] - panel["width"]) < 1 and item["y"] in points
        }
        assert points == pytest.approx({heights[name]: 100 * row.accuracy.mean for name, row in here.items()})
        assert costs == {heights[name]: f"{row.average:.1f}" for name, row in here.items()}


def test_a_method_without_one_budget_keeps_its_rank() -> None:
    rows = [
        summary("good", "easy", 0.9),
        summary("bad", "easy", 0.8),
        summary("good", "hard", 0.4),
        summary("bad", "hard", 0.3),
        summary("middle", "hard", 0.35),
    ]
    assert charts_of(rows).ranked() == ["good", "middle", "bad"]


def test_several_results_share_axes_and_styles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = {"one": charts_of(zoo(["fastv", "mine"], (16, 64))), "two": charts_of(zoo(["mine"], (64, 128)))}
    with figures(monkeypatch) as found:
        comparison_plot(results, tmp_path / "accuracy.png")
    (spec,) = found
    titles = [item["text"] for item in marks(spec, "text", "title-text")]
    assert titles.index("one") < titles.index("two")
    above, below = panels(spec)[:2], panels(spec)[2:]
    style = styles(["fastv", "mine"])["mine"]
    for upper, lower in zip(above, below, strict=True):
        same = []
        for panel in (upper, lower):
            (point,) = [
                item
                for item in within(panel, marks(spec, "symbol"))
                if "method: mine; budget: 64 tokens kept" in item["description"]
            ]
            assert (point["fill"], point["shape"]) == (style.colour, style.marker)
            same.append((value(point, "accuracy, %"), point["y"] - panel["y"]))
        # one is the second of its table, the other the first: 1 point apart at the same scale
        (first, low), (second, high) = same
        (band,) = within(upper, marks(spec, "rect"))
        per_point = band["height"] / 4  # from 88 to 92
        assert low - high == pytest.approx((second - first) * per_point)


@pytest.mark.parametrize(
    "rows",
    [
        [unpruned()],
        [unpruned(), summary("vtw", "drop_all", visual=0.0, average=0.0)],
        [unpruned(), summary("fastv", accuracy=0.5, average=24.0), summary("dart", "b", float("nan"))],
        [unpruned(), replace(summary("fastv"), accuracy=Estimate.unknown(0.5))],  # of a single picture
        [summary("fastv")],
        [],
    ],
)
def test_odd_tables_are_drawn(tmp_path: Path, rows: list[SeriesSummary]) -> None:
    assert all(path.stat().st_size for path in accuracy_plot(charts_of(rows), tmp_path / "accuracy.png"))
