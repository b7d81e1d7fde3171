"""What plots share: labels that do not overlap, points moved apart, three files that are always the same."""

from __future__ import annotations

from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from tokenprune.plotting import look, save, side_by_side, spread


def test_labels_with_room_stay_where_they_are() -> None:
    assert spread([30.0, 10.0, 50.0], [10.0] * 3, 0.0, 100.0) == [30.0, 10.0, 50.0]


def test_labels_at_one_place_are_spread_around_it() -> None:
    assert spread([50.0, 50.0, 50.0], [10.0] * 3, 0.0, 100.0) == pytest.approx([40.0, 50.0, 60.0])


def test_labels_keep_within_the_room() -> None:
    assert spread([1.0, 2.0], [10.0, 20.0], 0.0, 100.0) == pytest.approx([5.0, 20.0])
    assert spread([99.0, 98.0], [10.0, 20.0], 0.0, 100.0) == pytest.approx([95.0, 80.0])
    assert spread([5.0, 5.0], [10.0, 10.0], 0.0, 19.0) is None


def test_labels_move_as_little_as_possible() -> None:
    """Against a slow search over a grid of all places."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        wanted = sorted(rng.integers(0, 12, 3).tolist())
        found = spread(wanted, [3.0] * 3, 0.0, 12.0)
        assert found is not None
        assert all(b - a >= 3 - 1e-9 for a, b in pairwise(found))
        grid = [step / 6 for step in range(9, 64)]  # centres of labels of height 3 between 0 and 12
        costs = [
            sum((place - want) ** 2 for place, want in zip((a, b, c), wanted, strict=True))
            for a in grid
            for b in grid
            if b - a >= 3
            for c in grid
            if c - b >= 3
        ]
        mine = sum((place - want) ** 2 for place, want in zip(found, wanted, strict=True))
        assert mine <= min(costs) + 1e-6


def test_points_at_one_place_stand_side_by_side_around_it() -> None:
    assert side_by_side([0.5, 0.2, 0.5, 0.5], near=0.01, step=0.02) == pytest.approx([0.48, 0.2, 0.5, 0.52])


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_points_of_a_group_have_the_order_in_which_they_are_given(order: tuple[int, ...]) -> None:
    values = [(0.5, 0.501, 0.502)[place] for place in order]
    moved = side_by_side(values, near=0.01, step=0.02)
    assert moved == sorted(moved)


def test_groups_that_are_near_move_less() -> None:
    moved = side_by_side([0.5] * 4 + [0.53] * 4, near=0.01, step=0.02)
    assert moved[3] - moved[0] < 3 * 0.02
    assert min(b - a for a, b in pairwise(moved[:4])) >= 0.01 - 1e-9  # half of the step at least


def test_the_three_files_hold_text_as_text_and_are_always_the_same(tmp_path: Path) -> None:
    contents = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        with look():
            figure = Figure(layout="constrained")
            axes = figure.subplots()
            axes.plot([0, 1], [1, 0], marker="o")
            axes.fill_between([0, 1], [1, 0], alpha=0.5)
            axes.set_title("accuracy of fastv")
            written = save(figure, tmp_path / folder / "plot.png")
        assert [path.name for path in written] == ["plot.png", "plot.svg", "plot.pdf"]
        contents.append([path.read_bytes() for path in written])
    assert contents[0] == contents[1]
    png, svg, pdf = contents[0]
    assert png.startswith(b"\x89PNG")
    assert b">accuracy of fastv</text>" in svg
    assert b"<dc:date>" not in svg
    assert pdf.startswith(b"%PDF")
    assert b"/TrueType" in pdf or b"/CIDFontType2" in pdf  # embedded TrueType, no Type 3
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
