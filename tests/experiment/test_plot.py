"""Pictures of accuracy: every point is seen, every line is named, no names overlap."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from tests.support.summaries import figures, summary, unpruned, zoo
from tokenprune.experiment.plot import BEST, MOST_LINES, accuracy_plot, comparison_plot, ranked
from tokenprune.experiment.stats import Estimate
from tokenprune.experiment.summary import SeriesSummary
from tokenprune.palette import GREY, PLACES, styles

BUDGETS = (16, 32, 64, 96, 128, 192, 256)
REFERENCES = ["oracle", "random", "random-layer-2"]


def names_of(axes: Axes) -> list[Annotation]:
    return [item for item in axes.texts if isinstance(item, Annotation)]


def points_of(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    """The points of every line with intervals, by its label."""
    bars = [item for item in axes.containers if isinstance(item, ErrorbarContainer)]
    return {str(item.get_label()): [(float(x), float(y)) for x, y in item.lines[0].get_xydata()] for item in bars}


def overlapping(figure: Figure, texts: list[Annotation]) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes overlap."""
    figure.draw_without_rendering()
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts]
    return [
        (first, second)
        for (first, one), (second, other) in combinations(boxes, 2)
        if min(one.y1, other.y1) - max(one.y0, other.y0) > 1 and min(one.x1, other.x1) > max(one.x0, other.x0)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, MOST_LINES, 25])
def test_lines_are_named_at_their_ends_without_overlaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    methods = list(PLACES[:count])
    with figures(monkeypatch) as drawn:
        accuracy_plot(zoo([*methods, *REFERENCES], BUDGETS), tmp_path / "accuracy.png")
    cost, tokens = drawn[0].axes
    texts = names_of(tokens)
    coloured = methods if count <= MOST_LINES else methods[:BEST]
    assert {text.get_text() for text in texts} == {*coloured, *REFERENCES}
    assert not names_of(cost)
    assert overlapping(drawn[0], texts) == []
    width, height = drawn[0].canvas.get_width_height()
    for text in texts:
        box = Text.get_window_extent(text)
        assert 0 <= box.x0 < box.x1 <= width, text.get_text()
        assert 0 <= box.y0 < box.y1 <= height, text.get_text()


def test_names_without_room_are_a_legend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [f"random-layer-{layer}" for layer in range(25)]
    with figures(monkeypatch) as drawn:
        accuracy_plot(zoo(["fastv", *many], BUDGETS), tmp_path / "accuracy.png")
    assert not names_of(drawn[0].axes[1])
    (legend,) = drawn[0].legends
    assert {text.get_text() for text in legend.get_texts()} == {"fastv", *many}


def test_points_of_one_cost_do_not_hide_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [unpruned(), *(summary(name, accuracy=0.5) for name in PLACES[:8])]
    with figures(monkeypatch) as drawn:
        accuracy_plot(rows, tmp_path / "accuracy.png")
    for axes in drawn[0].axes:
        pixels = sorted(axes.transData.transform(points[0])[0] for points in points_of(axes).values())
        diameter = 5 / 72 * drawn[0].dpi
        assert min(b - a for a, b in pairwise(pixels)) > diameter / 2
        assert pixels[-1] - pixels[0] < 0.25 * axes.get_window_extent().width


def test_both_panels_show_the_accuracy_at_the_right_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        unpruned(),
        summary("fastv", "a", 0.25, visual=10.0, average=40.0),
        summary("fastv", "b", 0.75, visual=90.0, average=100.0),
        summary("random", "b", 0.5, visual=50.0, average=70.0),
    ]
    with figures(monkeypatch) as drawn:
        written = accuracy_plot(rows, tmp_path / "accuracy.png", "agreement")
    assert [path.name for path in written] == ["accuracy.png", "accuracy.svg", "accuracy.pdf"]
    assert all(path.stat().st_size > 5000 for path in written)
    cost, tokens = drawn[0].axes
    for axes, name, points in (
        (cost, "fastv", [(40, 25), (100, 75)]),
        (tokens, "fastv", [(10, 25), (90, 75)]),
        (tokens, "random", [(50, 50)]),
    ):
        assert np.array(points_of(axes)[name]) == pytest.approx(np.array(points))
    assert cost.get_ylabel() == "agreement, %"
    assert "cost" in cost.get_xlabel()
    assert "kept" in tokens.get_xlabel()
    svg = (tmp_path / "accuracy.svg").read_text()
    assert ">fastv</text>" in svg
    assert "unpruned model (576 tokens)" in svg


def test_colours_are_those_of_the_palette(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ["fastv", "visionzip", "random"]
    with figures(monkeypatch) as drawn:
        accuracy_plot(zoo(methods, BUDGETS), tmp_path / "accuracy.png")
    for axes in drawn[0].axes:
        for bars in axes.containers:
            style = styles(methods)[str(bars.get_label())]
            assert bars.lines[0].get_color() == style.colour
            assert bars.lines[0].get_marker() == style.marker
    assert styles(methods)["random"].colour == GREY


def test_methods_that_are_not_among_the_best_are_faint_and_named_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = list(PLACES[:12])
    with figures(monkeypatch) as drawn:
        written = accuracy_plot(zoo(methods, (16, 64)), tmp_path / "accuracy.png")
    assert [path.name for path in written[3:]] == [f"accuracy-by-budget.{end}" for end in ("png", "svg", "pdf")]
    note = drawn[0].get_supxlabel()
    assert f"the best first: {', '.join(methods[BEST:])}." in " ".join(note.split())
    assert set(points_of(drawn[0].axes[0])) == set(methods[:BEST])


def test_the_picture_by_budget_shows_every_method_and_its_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = [*PLACES[:12], "random"]
    rows = [row for row in zoo(methods, BUDGETS) if (row.method, row.budget) != (PLACES[3], "keep_count 32")]
    with figures(monkeypatch) as drawn:
        accuracy_plot(rows, tmp_path / "accuracy.png")
    panels = drawn[1].axes
    assert [axes.get_title() for axes in panels] == [f"keep_count {tokens}" for tokens in BUDGETS]
    order = [label.get_text() for label in panels[0].get_yticklabels()][::-1]
    assert order == methods  # the best on top
    for axes, tokens in zip(panels, BUDGETS, strict=True):
        here = [row for row in rows if row.budget == f"keep_count {tokens}"]
        bars = [item.lines[0].get_xydata()[0] for item in axes.containers if isinstance(item, ErrorbarContainer)]
        found = {methods[::-1][int(y)]: float(x) for x, y in bars}
        assert found == pytest.approx({row.method: 100 * row.accuracy.mean for row in here})
        costs = {text.get_text() for text in axes.texts if text.get_text() != "cost"}
        assert costs == {f"{row.average:.1f}" for row in here}


def test_a_method_without_one_budget_keeps_its_rank() -> None:
    rows = [
        summary("good", "easy", 0.9),
        summary("bad", "easy", 0.8),
        summary("good", "hard", 0.4),
        summary("bad", "hard", 0.3),
        summary("middle", "hard", 0.35),
    ]
    assert ranked(rows) == ["good", "middle", "bad"]


def test_several_results_share_axes_and_styles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = {"one": zoo(["fastv", "mine"], (16, 64)), "two": zoo(["mine"], (64, 128))}
    with figures(monkeypatch) as drawn:
        comparison_plot(results, tmp_path / "accuracy.png")
    above, below = drawn[0].axes[:2], drawn[0].axes[2:]
    assert above[0].get_title(loc="left") == "one"
    assert below[0].get_title(loc="left") == "two"
    for upper, lower in zip(above, below, strict=True):
        assert upper.get_xlim() == lower.get_xlim()
        assert upper.get_ylim() == lower.get_ylim()
        colours = [
            next(bars.lines[0].get_color() for bars in axes.containers if bars.get_label() == "mine")
            for axes in (upper, lower)
        ]
        assert colours[0] == colours[1]


@pytest.mark.parametrize(
    "rows",
    [
        [unpruned()],
        [unpruned(), summary("vtw", "drop_all", visual=0.0, average=0.0)],
        [unpruned(), summary("fastv", accuracy=0.5, average=24.0), summary("dart", "b", float("nan"))],
        [unpruned(), replace(summary("fastv"), accuracy=Estimate(0.5, float("inf")))],  # of a single picture
        [summary("fastv")],
    ],
)
def test_odd_tables_are_drawn(tmp_path: Path, rows: list[SeriesSummary]) -> None:
    assert all(path.stat().st_size for path in accuracy_plot(rows, tmp_path / "accuracy.png"))
