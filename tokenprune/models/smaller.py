"""Smaller pictures: their sizes under a budget, their pixels and features, and processors that do not enlarge them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tokenprune.core.optional import optional
from tokenprune.errors import BudgetError

if TYPE_CHECKING:
    from PIL.Image import Image


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


def averaged(features: Tensor, grid: Grid) -> Tensor:
    """The features of a square picture averaged to fewer: each is the mean of those that its area touches.

    Args:
        features: Floating ``[side * side, dim]``, row by row.
        grid: The rows and columns of the result.

    Returns:
        ``[rows * columns, dim]``.
    """
    side = math.isqrt(len(features))
    cells = features.float().T.reshape(1, -1, side, side)
    return functional.adaptive_avg_pool2d(cells, grid)[0].flatten(1).T.to(features.dtype)


def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels of another size: bicubic, with antialiasing, as processors resize.

    Args:
        pixels: Floating ``[pictures, channels, height, width]``.
        size: The new height and width.
    """
    small = functional.interpolate(pixels.float(), size, mode="bicubic", antialias=True, align_corners=False)
    return small.to(pixels.dtype)


def smaller_image(image: Image, size: tuple[int, int]) -> Image:
    """A picture made smaller: bicubic, with antialiasing.

    Args:
        image: The picture.
        size: The new height and width in pixels.
    """
    pillow = optional("PIL.Image", "smaller pictures", "data")
    plain = image if image.mode == "RGB" else image.convert("RGB")  # a palette cannot be averaged
    return plain.resize((size[1], size[0]), pillow.Resampling.BICUBIC)


def smaller_frame(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A frame of a video made smaller, uint8 ``[height, width, 3]``; see :func:`smaller_image`."""
    pillow = optional("PIL.Image", "smaller pictures", "data")
    return np.asarray(smaller_image(pillow.fromarray(frame), size))


@contextmanager
def not_enlarging(processor: Any) -> Iterator[None]:
    """Inside the block a processor that resizes to a number of pixels has no lower limit. Then it is as before."""
    changed = []
    for name in ("image_processor", "video_processor"):
        part = getattr(processor, name, None)
        size = getattr(part, "size", None)
        if part is not None and size is not None and {"shortest_edge", "longest_edge"} <= set(given(size)):
            changed.append((part, size))
            part.size = type(size)(**{**given(size), "shortest_edge": 1})
    try:
        yield
    finally:
        for part, size in changed:
            part.size = size


def given(size: Any) -> dict[str, int]:
    """The entries of a processor's size that are not null."""
    return {name: value for name, value in dict(size).items() if value is not None}
