"""The picture of an entropy profile: mean, quartiles, single samples, chosen layers, words."""

from __future__ import annotations

import statistics
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from tests.support.summaries import figures
from tokenprune.experiment.profile_plot import LINES, SAMPLES, profile_plot
from tokenprune.experiment.profiling import ProfiledModel
from tokenprune.selectors.base import LayerChoice
from tokenprune.selectors.entropy_profile import EntropyProfile

SHAPE = [2.0, 1.9, 0.5, 0.4, 0.4, 0.5, 1.0, 1.5]


def measured(samples: int, choices: dict[str, LayerChoice] | None = None) -> ProfiledModel:
    curves = tuple(tuple(value * (1 + 0.1 * number) for value in SHAPE) for number in range(samples))
    return ProfiledModel(EntropyProfile(family="x", num_layers=len(SHAPE), curves=curves), choices or {}, {})


def drawn(found: ProfiledModel, path: Path, monkeypatch: pytest.MonkeyPatch) -> Figure:
    with figures(monkeypatch) as saved:
        written = profile_plot(found, path)
    assert [item.suffix for item in written] == [".png", ".svg", ".pdf"]
    return saved[0]


def test_the_curve_its_spread_and_some_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(9)
    (axes,) = drawn(found, tmp_path / "profile.png", monkeypatch).axes
    lines = {str(line.get_label()): line for line in axes.lines}
    assert lines["mean of 9 samples"].get_ydata() == pytest.approx(found.profile.mean)
    thin = [line for line in axes.lines if line.get_linewidth() < 1]
    assert len(thin) == SAMPLES
    assert [list(line.get_ydata()) for line in thin] == [list(curve) for curve in found.profile.curves[:SAMPLES]]
    (band,) = [item for item in axes.collections if isinstance(item, FillBetweenPolyCollection)]
    edges = np.asarray(band.get_paths()[0].vertices)
    for layer in range(len(SHAPE)):
        heights = edges[edges[:, 0] == layer][:, 1]
        low, _, high = statistics.quantiles((curve[layer] for curve in found.profile.curves), n=4, method="inclusive")
        assert (heights.min(), heights.max()) == pytest.approx((low, high))


def test_one_sample_has_no_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (axes,) = drawn(measured(1), tmp_path / "profile.png", monkeypatch).axes
    assert [str(line.get_label()) for line in axes.lines] == ["one sample"]


def test_chosen_layers_are_named_without_overlaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = {f"m / {layer}": LayerChoice((layer,), f"why {layer}") for layer in (2, 3, 4)}
    choices["p"] = LayerChoice((4, 6), "why 4 and 6")
    figure = drawn(measured(4, choices), tmp_path / "profile.png", monkeypatch)
    (axes,) = figure.axes
    dashed = [float(line.get_xdata()[0]) for line in axes.lines if line.get_linestyle() == "--"]
    assert dashed == [1.5, 2.5, 3.5, 5.5]  # tokens are dropped before a layer
    texts = [item for item in axes.texts if isinstance(item, Annotation)]
    assert [text.get_text() for text in texts] == ["2", "3", "4", "6"]
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in texts]
    assert all(one.x1 <= other.x0 or other.x1 <= one.x0 for one, other in combinations(boxes, 2))


def test_the_verdict_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = {name: LayerChoice((3,), "layer 3 agrees best") for name in ("a / keep 1", "a / keep 2")}
    found = measured(4, choices)
    words = drawn(found, tmp_path / "profile.png", monkeypatch).get_supxlabel()
    text = " ".join(words.split())
    assert "Collapse before layer 2: sharpest mean drop" in text
    assert "a / keep 1, a / keep 2: layer 3 agrees best" in text
    assert ">Collapse before layer 2: sharpest mean drop" in (tmp_path / "profile.svg").read_text()


def test_more_words_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = {f"method / {number}": LayerChoice((3,), f"reason {number}") for number in range(30)}
    words = drawn(measured(4, choices), tmp_path / "profile.png", monkeypatch).get_supxlabel().splitlines()
    assert len(words) <= LINES + 1
    shown = sum(line.startswith("method / ") for line in words)
    assert words[-1] == f"... and {30 - shown} more, which the profile's file holds."
