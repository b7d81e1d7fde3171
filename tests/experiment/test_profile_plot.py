"""The picture of an entropy profile: mean, quartiles, single samples, chosen layers, words."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.scenes import figures, marks, overlapping
from tokenprune.drawing.palette import COLOURS
from tokenprune.drawing.vega import SOFT
from tokenprune.experiment.profile_plot import LINES, SAMPLES, profile_plot
from tokenprune.experiment.profiling import ProfiledModel
from tokenprune.selectors.base import LayerChoice
from tokenprune.selectors.entropy_profile import EntropyProfile

SHAPE = [2.0, 1.9, 0.5, 0.4, 0.4, 0.5, 1.0, 1.5]


def measured(samples: int, choices: dict[str, LayerChoice] | None = None) -> ProfiledModel:
    curves = tuple(tuple(value * (1 + 0.1 * number) for value in SHAPE) for number in range(samples))
    return ProfiledModel(EntropyProfile(family="x", num_layers=len(SHAPE), curves=curves), choices or {}, {})


def drawn(found: ProfiledModel, path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with figures(monkeypatch) as saved:
        written = profile_plot(found, path)
    assert [item.suffix for item in written] == [".png", ".svg", ".pdf"]
    return saved[0]


def legend(spec: object) -> list[str]:
    return [item["text"] for item in marks(spec, "text", "legend-label")]


def test_the_curve_its_spread_and_some_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(9)
    spec = drawn(found, tmp_path / "profile.png", monkeypatch)
    assert legend(spec) == ["plateau", "single samples", "quartiles", "mean of 9 samples"]
    values = {layer["encoding"]["color"]["datum"]: layer["data"]["values"] for layer in spec["layer"]}
    assert [row["entropy"] for row in values["mean of 9 samples"]] == pytest.approx(found.profile.mean)
    single = [[row["entropy"] for row in values["single samples"] if row["sample"] == at] for at in range(SAMPLES)]
    assert single == [list(curve) for curve in found.profile.curves[:SAMPLES]]
    assert len(values["single samples"]) == SAMPLES * len(SHAPE)
    for layer, row in enumerate(values["quartiles"]):
        low, _, high = statistics.quantiles((curve[layer] for curve in found.profile.curves), n=4, method="inclusive")
        assert (row["layer"], row["entropy"], row["high"]) == (layer, low, high)
    lines = marks(spec, "line")
    assert [item["stroke"] for item in lines] == ["#A6A6A6"] * SAMPLES * len(SHAPE) + [COLOURS[0]] * len(SHAPE)
    assert [item["x"] for item in lines[: len(SHAPE)]] == [item["x"] for item in lines[-len(SHAPE) :]]


def test_the_tower_stands_before_the_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = tuple((5.0 + number, 4.0, 3.0 - number / 10) for number in range(5))
    plain = measured(5, {"m": LayerChoice((3,), "why")})
    found = replace(plain, profile=plain.profile.model_copy(update={"tower": tower}))
    spec = drawn(found, tmp_path / "profile.png", monkeypatch)
    values = {
        layer["encoding"]["color"]["datum"]: layer["data"]["values"]
        for layer in spec["layer"]
        if "color" in layer["encoding"]
    }
    mean = values["mean of 5 samples"]
    assert [row["layer"] for row in mean] == list(range(-3, len(SHAPE)))
    assert [row["entropy"] for row in mean] == pytest.approx(list(found.profile.path_mean.values()))
    first = [row["entropy"] for row in values["single samples"] if row["sample"] == 1]
    assert first == [*tower[1], *found.profile.curves[1]]
    assert len(values["quartiles"]) == 3 + len(SHAPE)
    (boundary,) = [item for item in marks(spec, "rule") if item["stroke"] == SOFT and "strokeDash" not in item]
    width = 660 / (3 + len(SHAPE))
    assert boundary["x"] / width == pytest.approx(3)
    beside = {item["text"]: item for item in marks(spec, "text") if str(item["text"]).endswith(("tower", "model"))}
    assert set(beside) == {"vision tower", "language model"}
    (chosen,) = [item for item in marks(spec, "rule") if item.get("strokeDash") == [5, 3]]
    assert chosen["x"] / width == pytest.approx(3 + 3)
    svg = (tmp_path / "profile.svg").read_text()
    assert [name for name in ("T0", "T1", "T2", "T3") if f">{name}<" in svg] == ["T0", "T1", "T2"]


def test_one_sample_has_no_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = drawn(measured(1), tmp_path / "profile.png", monkeypatch)
    assert legend(spec) == ["plateau", "one sample"]
    assert marks(spec, "area") == []


def test_chosen_layers_are_named_without_overlaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = {f"m / {layer}": LayerChoice((layer,), f"why {layer}") for layer in (2, 3, 4)}
    choices["p"] = LayerChoice((4, 6), "why 4 and 6")
    profile = EntropyProfile(family="x", num_layers=80, curves=((1.0,) * 80,) * 4)
    model = replace(measured(4, choices), profile=profile)
    spec = drawn(model, tmp_path / "profile.png", monkeypatch)
    width = 660 / 80  # of a layer
    rules = [item for item in marks(spec, "rule") if item.get("strokeDash") == [5, 3]]
    assert [item["x"] / width for item in rules] == pytest.approx([2, 3, 4, 6])  # tokens are dropped before a layer
    texts = marks(spec, "text")
    assert [text["text"] for text in texts] == [2, 3, 4, 6]
    assert {text["fill"] for text in texts} == {COLOURS[1]}
    assert overlapping(texts) == []


def test_the_verdict_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = {name: LayerChoice((3,), "layer 3 agrees best") for name in ("a / keep 1", "a / keep 2")}
    words = drawn(measured(4, choices), tmp_path / "profile.png", monkeypatch)["title"]["text"]
    assert words[0].startswith("Collapse before layer 2: sharpest mean drop")
    assert words[-1] == "a / keep 1, a / keep 2: layer 3 agrees best"
    assert ">Collapse before layer 2: sharpest mean drop" in (tmp_path / "profile.svg").read_text()


def test_more_words_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choices = {f"method / {number}": LayerChoice((3,), f"reason {number}") for number in range(30)}
    words = drawn(measured(4, choices), tmp_path / "profile.png", monkeypatch)["title"]["text"]
    assert len(words) <= LINES + 1
    shown = sum(line.startswith("method / ") for line in words)
    assert words[-1] == f"... and {30 - shown} more, which the profile's file holds."
