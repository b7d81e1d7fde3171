"""The sharpest relative drop along vision tower and language model, and the curves of the tower in a profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tokenprune.errors import ConfigError
from tokenprune.selectors.entropy_profile import EntropyProfile, detect_collapse
from tokenprune.selectors.path_drop import find_path_drop
from tokenprune.selectors.plateau import find_plateau


def profile(tower: list[list[float]], curves: list[list[float]], **more: Any) -> EntropyProfile:
    rows = tuple(map(tuple, tower))
    return EntropyProfile(family="toy", num_layers=len(curves[0]), curves=tuple(map(tuple, curves)), tower=rows, **more)


DECODER = [2.0, 1.9, 1.0, 0.9]


@pytest.mark.parametrize(
    ("tower", "start", "end", "share"),
    [
        ([4.0, 1.8, 1.9, 2.0], "tower 0", "tower 1", 0.55),
        ([4.0, 4.2, 4.1], "tower 2", "layer 0", (4.1 - 2) / 4.1),
        ([4.0, 3.0, 2.5], "layer 1", "layer 2", 0.9 / 1.9),  # the tower falls by more, but by a smaller share
    ],
)
def test_the_drop_is_found_where_it_was_planted(tower: list[float], start: str, end: str, share: float) -> None:
    found = find_path_drop(profile([tower] * 3, [DECODER] * 3))
    assert (found.start, found.end) == (start, end)
    assert found.relative == pytest.approx(share)
    assert found.agreement == 1
    assert f"% ({'4.1000 to 2.0000' if end == 'layer 0' else ''}" in found.sentence
    assert (" (the projector), 100 % of 3 samples agree" in found.sentence) == (end == "layer 0")


def test_samples_agree_within_a_step() -> None:
    towers = [[4.0, 1.0, 1.0, 1.0, 1.0], [4.0, 4.0, 1.0, 1.0, 1.0], [4.0, 4.0, 4.0, 4.0, 1.0]]
    found = find_path_drop(profile(towers, [[1.0, 1.0]] * 3))
    # means 4, 3, 2, 2, 1: by a third behind tower 1, and by half behind tower 3
    assert (found.start, found.end) == ("tower 3", "tower 4")
    assert found.agreement == pytest.approx(1 / 3)
    assert found.sentence == (
        "sharpest relative drop on the visual path: 50.0 % (2.0000 to 1.0000), from tower 3 to tower 4,"
        " 33 % of 3 samples agree"
    )


def test_a_path_that_never_falls() -> None:
    found = find_path_drop(profile([[1.0, 1.0]], [[1.0, 2.0]]))
    assert (found.start, found.end) == ("", "")
    assert found.sentence == "the entropy never falls on the visual path"


def test_one_layer_and_no_tower() -> None:
    found = find_path_drop(profile([], [[1.0]], tower_refused="nobody describes it"))
    assert found.sentence == (
        "the entropy never falls on the visual path; the vision tower was not measured (nobody describes it)"
    )


def test_states_that_vanish_are_no_drop_behind() -> None:
    assert find_path_drop(profile([[2.0, 0.0]], [[0.0, 1.0]])).end == "tower 1"


def test_the_rules_decide_by_the_decoder_alone() -> None:
    with_tower, without = profile([[9.0, 0.1]] * 2, [DECODER] * 2), profile([], [DECODER] * 2)
    assert detect_collapse(with_tower) == detect_collapse(without)
    assert find_plateau(with_tower) == find_plateau(without)
    assert with_tower.mean == without.mean == DECODER


# ---- the profile ----


def test_the_path_in_order() -> None:
    found = profile([[5.0, 4.0], [7.0, 6.0]], [[3.0], [1.0]])
    assert found.tower_layers == 2
    assert found.path == {"tower 0": (5.0, 7.0), "tower 1": (4.0, 6.0), "layer 0": (3.0, 1.0)}
    assert found.path_mean == {"tower 0": 6.0, "tower 1": 5.0, "layer 0": 2.0}


def test_a_notebook_shows_the_path_or_why_not() -> None:
    html = profile([[5.0, 4.0], [7.0, 6.0]], [[3.0], [1.0]])._repr_html_()
    places = [html.index(name) for name in ("tower 0", "tower 1", "layer 0")]
    assert places == sorted(places)
    assert ">6.0000</td>" in html
    refused = profile([], [[3.0]], tower_refused="nobody describes it")._repr_html_()
    assert "the vision tower was not measured: nobody describes it" in refused


@pytest.mark.parametrize(
    ("tower", "more", "words"),
    [
        ([[1.0]], {}, "a curve of the vision tower per sample"),
        ([[1.0, 2.0], [1.0]], {}, "all over the same layers"),
        ([[], []], {}, "all over the same layers"),
        ([[1.0], [float("nan")]], {}, "a curve of the vision tower holds NaN"),
        ([[1.0], [2.0]], {"tower_refused": "why"}, "and a reason why it has none"),
    ],
)
def test_curves_of_the_tower_that_are_none(tower: list[list[float]], more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        profile(tower, [[1.0], [2.0]], **more)


def test_files_without_a_tower_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps({"family": "x", "num_layers": 2, "curves": [[2, 1]]}))
    old = EntropyProfile.load(tmp_path / "old.json")
    assert (old.tower, old.tower_refused, old.knows_tower) == ((), "", False)
    assert find_path_drop(old).sentence.endswith("; the vision tower was not measured (the file is older)")
    new = profile([[3.0]], [[2.0, 1.0]])
    new.save(tmp_path / "new.json")
    assert EntropyProfile.load(tmp_path / "new.json") == new
    (tmp_path / "bad.json").write_text(new.model_dump_json().replace("3.0", "NaN"))
    with pytest.raises(ConfigError, match="is not an entropy profile"):
        EntropyProfile.load(tmp_path / "bad.json")
