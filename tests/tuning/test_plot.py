"""The picture of a tune: a row per candidate, the colours of the methods, the noise, the cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.summaries import figures
from tests.tuning.test_ranking import GOOD, NOISE, SAME, WORSE, chance, measured, ranking
from tokenprune.palette import GREY, styles
from tokenprune.tuning.plot import tune_plot


def test_every_candidate_has_a_row_in_the_style_of_its_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = measured("fastv: layer 3", 0.4 + NOISE)
    early = measured("dart", 0.8 + NOISE[:8], left=8)
    found = ranking(GOOD, SAME, WORSE, variant, early, chance(0.9 + NOISE))
    with figures(monkeypatch) as drawn:
        written = tune_plot([found, found], "divergence", tmp_path / "tune.png")
    assert [path.name for path in written] == ["tune.png", "tune.svg", "tune.pdf"]
    for axes in drawn[0].axes:
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert names == [row.name for row in found.ranked]
        bold = {label.get_text() for label in axes.get_yticklabels() if label.get_fontweight() == "bold"}
        assert bold == {"good", "same"}
        lines = {names[int(bars.lines[0].get_ydata()[0])]: bars.lines[0] for bars in axes.containers}
        for row in found.ranked:
            assert lines[row.name].get_xdata()[0] == pytest.approx(row.loss.mean)
        expected = styles(["good", "same", "worse", "fastv", "dart", "random"])
        for name, method in (("fastv: layer 3", "fastv"), ("dart", "dart"), ("random: layer 0", "random")):
            assert lines[name].get_color() == expected[method].colour
            assert lines[name].get_marker() == expected[method].marker
        assert lines["random: layer 0"].get_color() == GREY
        assert lines["dart"].get_markerfacecolor() == "white"
        assert lines["fastv: layer 3"].get_markerfacecolor() == expected["fastv"].colour
        costs = [text.get_text() for text in axes.texts if text.get_text() != "cost"]
        assert costs == [f"{row.average:.1f}" for row in found.ranked]


@pytest.mark.slow
def test_losses_of_very_different_size_have_a_logarithmic_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = measured("tiny", 0.01 + NOISE.abs() / 100)
    with figures(monkeypatch) as drawn:
        tune_plot([ranking(tiny, WORSE), ranking(GOOD, WORSE)], "divergence", tmp_path / "tune.png")
    assert [axes.get_xscale() for axes in drawn[0].axes] == ["log", "linear"]
