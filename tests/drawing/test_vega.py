"""Shared parts of charts: marks that are moved apart, numbers on axes, three files that are always the same."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.support.scenes import marks
from tokenprune.drawing.vega import Json, Scale, figure, library, save, spread


def spread_out(wanted: list[float], step: float, low: float, high: float) -> list[float]:
    """The places that the transforms give, in the order of the names: a, b, c ..."""
    values = [{"v": value, "method": f"{at:03}", "budget": ""} for at, value in enumerate(wanted)]
    x = {"field": "place", "type": "quantitative", "scale": None}
    spec = {
        "data": {"values": values},
        "transform": spread("datum.v", str(step), str(low), str(high), "place"),
        "mark": "text",
        "encoding": {"x": x, "text": {"field": "method"}},
    }
    places = {item["text"]: item["x"] for item in marks(spec, "text")}
    return [places[name] for name in sorted(places)]


def test_marks_with_room_stay_where_they_are() -> None:
    assert spread_out([30.0, 10.0, 50.0], 10, 0, 100) == pytest.approx([30.0, 10.0, 50.0])


def test_marks_at_one_place_stand_around_it() -> None:
    assert spread_out([50.0, 20.0, 50.0, 50.0], 10, 0, 100) == pytest.approx([40.0, 20.0, 50.0, 60.0])


def test_marks_keep_within_the_room() -> None:
    assert spread_out([1.0, 2.0], 10, 0, 100) == pytest.approx([0.0, 10.0])
    assert spread_out([99.0, 98.0], 10, 0, 100) == pytest.approx([100.0, 90.0])
    assert spread_out([5.0, 5.0, 5.0], 10, 0, 10) == pytest.approx([0.0, 5.0, 10.0])  # no room for all


def test_marks_keep_their_order_and_distance() -> None:
    """Against the definition: the middle between all pushed up and all pushed down, one by one."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        wanted = rng.integers(20, 60, 8).astype(float).tolist()
        order = sorted(range(8), key=lambda at: (wanted[at], at))
        up, down = [wanted[at] for at in order], [wanted[at] for at in order]
        for at in range(1, 8):
            up[at] = max(up[at], up[at - 1] + 3)
            down[7 - at] = min(down[7 - at], down[8 - at] - 3)
        found = spread_out(wanted, 3, 0, 100)
        placed = [found[at] for at in order]
        assert placed == pytest.approx([(high + low) / 2 for high, low in zip(up, down, strict=True)])
        assert all(after - before >= 3 - 1e-9 for before, after in pairwise(placed))


@pytest.mark.parametrize("scale", [Scale(2.0, 8.0), Scale(1.0, 100.0, log=True)])
def test_places_on_an_axis_and_back(scale: Scale) -> None:
    values = [{"v": value, "method": str(value)} for value in (2.5, 4.0, 7.0)]
    place: Json = {"calculate": scale.share("datum.v"), "as": "share"}
    back: Json = {"calculate": f"format({scale.value('datum.share')}, '.6')", "as": "again"}
    spec = {
        "width": 200,
        "data": {"values": values},
        "transform": [place, back],
        "layer": [
            {
                "mark": "text",
                "encoding": {"x": scale.channel("v", ""), "text": {"field": "again"}},
            },
            {
                "mark": "point",
                "encoding": {"x": {"field": "share", "type": "quantitative", "scale": {"domain": [0, 1]}}},
            },
        ],
        "resolve": {"scale": {"x": "independent"}},
    }
    texts = marks(spec, "text")
    assert [float(item["text"]) for item in texts] == pytest.approx([2.5, 4.0, 7.0])
    assert [item["x"] for item in texts] == pytest.approx([item["x"] for item in marks(spec, "symbol")])


def test_round_numbers_on_a_logarithmic_axis() -> None:
    assert Scale(4.0, 120.0, log=True).round_numbers((1, 2, 3, 5, 7)) == [5, 7, 10, 20, 30, 50, 70, 100]
    assert Scale(0.004, 0.2, log=True).round_numbers() == pytest.approx([0.01, 0.1])
    assert Scale(4.0, 120.0).round_numbers((1, 2, 3, 5, 7)) == []


def test_the_three_files_hold_text_as_text_and_are_always_the_same(tmp_path: Path) -> None:
    text = {"data": {"values": [{"t": "one & <two>"}]}, "mark": {"type": "text", "opacity": 0.5}}
    spec = figure({**text, "encoding": {"text": {"field": "t"}}}, ["accuracy of fastv"], [])
    contents = []
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        written = save(spec, tmp_path / folder / "plot.png")
        assert [path.name for path in written] == ["plot.png", "plot.svg", "plot.pdf"]
        contents.append([path.read_bytes() for path in written])
    assert contents[0] == contents[1] == contents[2]
    png, svg, pdf = contents[0]
    assert png.startswith(b"\x89PNG")
    assert b">accuracy of fastv</text>" in svg
    assert pdf.startswith(b"%PDF")
    assert b"LiberationSans" in pdf  # the font that vl-convert holds, embedded
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf


def test_the_library_ends_no_script() -> None:
    text = library()
    assert "vegaEmbed" in text
    assert "</script" not in text
    assert library() is text  # made once per process
