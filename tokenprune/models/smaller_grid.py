"""The size of a smaller picture: as many visual tokens as a budget allows, in the shape of the picture."""

import itertools
import math
from collections.abc import Sequence

from tokenprune.errors import BudgetError

Grid = tuple[int, int]
"""Rows and columns of visual tokens of a picture or of a frame."""


def smaller_grid(rows: int, columns: int, most: int) -> Grid:
    """The grid of a smaller picture: the most tokens that are allowed, in nearly the shape of the picture.

    With the exact shape, the sides would be ``rows * s`` and ``columns * s``, ``s = sqrt(most / (rows * columns))``.
    Each is rounded down or up, and of these grids the one with the most tokens is taken: the picture is squeezed by
    less than one token on a side. Of equal ones it is the one nearest to the shape of the picture, then the wider one.
    A picture that would be narrower than one token is one token wide, and as long as the tokens suffice for.

    Args:
        rows: Rows of tokens of the picture as it is.
        columns: Columns of tokens.
        most: The most tokens of the smaller one, at least 1.
    """
    if most >= rows * columns:
        return rows, columns
    scale = math.sqrt(most / (rows * columns))
    heights, widths = ({max(1, math.floor(side * scale)), max(1, math.ceil(side * scale))} for side in (rows, columns))
    found = []
    for height, width in itertools.product(heights, widths):
        if width == 1:
            height = min(height, most)
        elif height == 1:
            width = min(width, most)
        if height * width <= most:
            squeezed = abs(math.log(height * columns / (width * rows)))
            found.append((height * width, -round(squeezed, 9), width, (height, width)))
    return max(found)[-1]


def smaller_grids(items: Sequence[tuple[int, int, int]], most: int) -> list[Grid]:
    """The grids of the pictures of a sample, which share its tokens in proportion to those that they have.

    A share is rounded down, so pictures of one size stay so. The frames of a video share alike, and all of them stay.

    Args:
        items: Frames, rows and columns of each picture (one frame) or video.
        most: The most visual tokens of the sample.

    Returns:
        One per item: that of its frames.

    Raises:
        BudgetError: There are more pictures and frames than tokens.
    """
    total = sum(map(math.prod, items))
    shares = [most * rows * columns // total for _, rows, columns in items]
    if min(shares, default=1) < 1:
        pictures = sum(frames for frames, _, _ in items)
        raise BudgetError(
            f"a budget of {most} visual tokens leaves a part of {pictures} pictures or frames without a token",
            "ask for more tokens: each of them keeps at least one, however small it is made",
        )
    return [smaller_grid(rows, columns, share) for (_, rows, columns), share in zip(items, shares, strict=True)]
