"""The size of smaller pictures, against a literal search."""

from __future__ import annotations

import math

import pytest

from tokenprune.errors import BudgetError
from tokenprune.models.smaller import smaller_grid, smaller_grids


def literal(rows: int, columns: int, most: int) -> tuple[int, int]:
    """All grids whose sides are less than one token from those with the exact shape; the most tokens win."""
    scale = math.sqrt(most / (rows * columns))
    found = []
    for height in range(1, rows + 1):
        for width in range(1, columns + 1):
            near = abs(height - rows * scale) < 1 and abs(width - columns * scale) < 1
            if near and height * width <= most:
                squeezed = abs(math.log(height / width) - math.log(rows / columns))
                found.append((-height * width, round(squeezed, 9), -width, (height, width)))
    return min(found)[-1]


@pytest.mark.parametrize(("rows", "columns"), [(12, 12), (7, 7), (24, 24), (9, 16), (30, 20), (5, 8)])
def test_it_is_the_largest_grid_of_nearly_the_shape(rows: int, columns: int) -> None:
    for most in range(4, rows * columns):
        scale = math.sqrt(most / (rows * columns))
        if min(rows, columns) * scale >= 1:
            assert smaller_grid(rows, columns, most) == literal(rows, columns, most), most


def test_by_hand() -> None:
    assert smaller_grid(12, 12, 144) == smaller_grid(12, 12, 500) == (12, 12)
    assert smaller_grid(12, 12, 36) == (6, 6)
    assert smaller_grid(12, 12, 35) == (5, 6)  # 5 x 6 and 6 x 5 are equally near: the wider one
    assert smaller_grid(12, 12, 15) == (3, 4)
    assert smaller_grid(7, 7, 12) == (3, 4)
    assert smaller_grid(7, 7, 5) == (2, 2)
    assert smaller_grid(16, 9, 36) == (8, 4)
    assert smaller_grid(12, 12, 1) == (1, 1)


def test_a_picture_is_never_narrower_than_a_token() -> None:
    """It is then as long as the tokens suffice for, and never more."""
    assert smaller_grid(1, 100, 10) == (1, 10)
    assert smaller_grid(60, 2, 10) == (10, 1)
    for rows in range(1, 14):
        for columns in range(1, 40, 3):
            for most in range(1, rows * columns + 1):
                height, width = smaller_grid(rows, columns, most)
                assert 1 <= height <= rows
                assert 1 <= width <= columns
                assert height * width <= most


def test_pictures_share_in_proportion_and_equal_ones_stay_equal() -> None:
    assert smaller_grids([(1, 7, 7)] * 8, 98) == [(3, 4)] * 8  # 12.25 each
    assert smaller_grids([(1, 7, 7)] * 8, 43) == [(2, 2)] * 8  # 5.375 each
    assert smaller_grids([(1, 8, 8), (1, 4, 8)], 24) == [(4, 4), (2, 4)]
    assert smaller_grids([(4, 6, 6), (1, 12, 12)], 72) == [(3, 3), (6, 6)]  # a video of four frames, and a picture
    assert smaller_grids([], 5) == []


def test_every_picture_keeps_a_token() -> None:
    with pytest.raises(BudgetError, match=r"a budget of 7 visual tokens leaves a part of 8 pictures or frames without"):
        smaller_grids([(1, 7, 7)] * 8, 7)
