"""The figure of a tune: a row per candidate, the styles of the methods, the noise, the cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.scenes import figures, marks, panels, within
from tests.tuning.test_ranking import GOOD, NOISE, SAME, WORSE, chance, measured, ranking
from tokenprune.drawing.palette import GREY, styles
from tokenprune.tuning.ranking import Ranking
from tokenprune.tuning.report import charts_of, tune_plot


def at(budget: str, found: Ranking) -> Ranking:
    """The ranking of another budget."""
    return replace(found, budget=budget, ranked=tuple(replace(row, budget=budget) for row in found.ranked))


def test_every_candidate_has_a_row_in_the_style_of_its_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = measured("fastv: layer 3", 0.4 + NOISE)
    early = measured("dart", 0.8 + NOISE[:8], left=8)
    found = ranking(GOOD, SAME, WORSE, variant, early, chance(0.9 + NOISE))
    with figures(monkeypatch) as drawn:
        written = tune_plot([found, at("another", found)], "divergence", tmp_path / "tune.png")
    assert [path.name for path in written] == ["tune.png", "tune.svg", "tune.pdf"]
    (spec,) = drawn
    names = [row.name for row in found.ranked]
    methods = ["fastv" if name.startswith("fastv") else name.partition(":")[0] for name in names]
    labels = [item for item in marks(spec, "text", "axis-label") if item["text"] in names]
    assert [item["text"] for item in labels] == [*names, *names]
    assert {item["text"] for item in labels if item["fontWeight"] == "bold"} == {"good", "same"}
    expected = styles(methods)
    assert expected["random"].colour == GREY
    for panel in panels(spec):
        symbols = within(panel, marks(spec, "symbol"))
        assert len(symbols) == len(names)
        for row, method, item in zip(found.ranked, methods, symbols, strict=True):
            style = expected[method]
            assert item["shape"] == style.marker
            assert style.colour in (item["fill"], item["stroke"])
            assert (item["fill"] == "white") == (row.name == "dart")
            loss = item["description"].partition("loss, nats: ")[2].partition(";")[0]
            assert float(loss) == pytest.approx(row.loss.mean)
        costs = [item["text"] for item in marks(spec, "text") if 0 < item["y"] - panel["y"] < panel["height"]]
        assert costs == [f"{row.average:.1f}" for row in found.ranked]
        (band,) = within(panel, marks(spec, "rect"))
        best = min(symbols, key=lambda item: item["y"])
        assert band["x"] < best["x"] < band["x"] + band["width"]


def test_losses_of_very_different_size_have_a_logarithmic_axis() -> None:
    tiny = measured("tiny", 0.01 + NOISE.abs() / 100)
    assert charts_of([ranking(tiny, WORSE), at("another", ranking(GOOD, WORSE))], "divergence").log
    assert not charts_of([ranking(GOOD, WORSE)], "divergence").log
