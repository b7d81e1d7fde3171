"""Pixels of a sheet: kept patches as they are, dropped ones faded."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenprune.pictures.sheets import Sheet

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
#: Segments of lines, ``[segments, 2 ends, (x, y)]``.
Segments = NDArray[np.float64]

#: Pixels of a cell at least, so that its edges are where they should be.
FEWEST = 8
#: Grey of a picture that is not known, and of what a processor added around one.
BLANK, PADDING = 178, 225
#: Pictures whose mean is higher are white pages.
BRIGHT = 185


def base(sheet: Sheet, long_side: int) -> Pixels:
    """The pixels of a sheet before anything is faded, uint8 ``[height, width, 3]``.

    Args:
        sheet: The sheet.
        long_side: A picture with a longer side than this is scaled down, in pixels.
    """
    if sheet.look.pictures:
        picture = np.ascontiguousarray(sheet.look.pictures[sheet.picture])
    else:
        width = max(round(view.columns / view.width) for view in sheet.views)
        height = max(round(view.rows / view.height) for view in sheet.views)
        picture = np.full((height, width, 3), BLANK, dtype=np.uint8)
    picture = _resized(picture, sheet, long_side)
    height, width = picture.shape[:2]
    left, top, right, bottom = sheet.extent
    out = np.full((round((bottom - top) * height), round((right - left) * width), 3), PADDING, dtype=np.uint8)
    x, y = round(-left * width), round(-top * height)
    out[y : y + height, x : x + width] = picture
    return out


def _resized(picture: Pixels, sheet: Sheet, long_side: int) -> Pixels:
    height, width = picture.shape[:2]
    # each by itself: a picture of 1 x 8000 pixels would else become one of gigabytes
    across = max(FEWEST * view.columns / (view.width * width) for view in sheet.views)
    down = max(FEWEST * view.rows / (view.height * height) for view in sheet.views)
    if across > 1 or down > 1:
        return picture.repeat(math.ceil(max(down, 1.0)), axis=0).repeat(math.ceil(max(across, 1.0)), axis=1)
    factor = max(height, width) // long_side
    if factor < 2:
        return picture
    # whole blocks are averaged; what is left over at the right and at the bottom repeats the edge
    padded = np.pad(picture, ((0, -height % factor), (0, -width % factor), (0, 0)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // factor, factor, padded.shape[1] // factor, factor, 3)
    mean: Pixels = blocks.mean(axis=(1, 3)).round().astype(np.uint8)
    return mean


def kept_pixels(sheet: Sheet, kept: Mask, shape: Sequence[int]) -> Mask:
    """The pixels of a sheet in the cells of kept tokens, bool ``shape``."""
    out = np.zeros(shape[:2], dtype=bool)
    xs = _centres(sheet.extent[0], sheet.extent[2], shape[1])
    ys = _centres(sheet.extent[1], sheet.extent[3], shape[0])
    for number, view in zip(sheet.numbers, sheet.views, strict=True):
        columns = np.floor((xs - view.box[0]) / view.width * view.columns).astype(int)
        rows = np.floor((ys - view.box[1]) / view.height * view.rows).astype(int)
        across = np.flatnonzero((columns >= 0) & (columns < view.columns))
        down = np.flatnonzero((rows >= 0) & (rows < view.rows))
        out[np.ix_(down, across)] = sheet.look.grid(number, kept, False)[np.ix_(rows[down], columns[across])]
    return out


def _centres(first: float, last: float, count: int) -> NDArray[np.float64]:
    return first + (np.arange(count) + 0.5) / count * (last - first)


def is_bright(pictures: Sequence[Pixels]) -> bool:
    """Whether pictures are mostly white paper: scans, charts."""
    return bool(pictures) and float(np.mean([picture[::4, ::4].mean() for picture in pictures])) > BRIGHT


def faded(pixels: Pixels, kept: Mask, bright: bool) -> Pixels:
    """Kept pixels as they are; the others lose their colour and most of their contrast.

    Dropped parts of ordinary pictures become light, and those of white pages become dark: either way the kept ones
    stand out, on paper, too.

    Args:
        pixels: uint8 ``[height, width, 3]``.
        kept: Which pixels stay, ``[height, width]``.
        bright: Whether the pictures of the sample are white pages.
    """
    paper = 105.0 if bright else 238.0
    grey = (pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]
    dropped = 0.22 * grey + 0.08 * pixels + 0.7 * paper
    return np.where(kept[..., None], pixels, dropped.round().clip(0, 255)).astype(np.uint8)


def outlines(sheet: Sheet, groups: NDArray[Any], empty: Any) -> Segments:
    """The lines between cells whose values differ, in shares of the picture.

    Args:
        sheet: The sheet.
        groups: A value per token, ``[tokens]``: whether it is kept, the cluster that it is in ...
        empty: The value of cells without a token, and of what lies around the grid.

    Returns:
        ``[lines, 2, 2]``; lines that go on straight are one.
    """
    found: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for number, view in zip(sheet.numbers, sheet.views, strict=True):
        left, top, right, bottom = view.box
        grid = np.pad(sheet.look.grid(number, groups, empty), 1, constant_values=empty)
        xs = np.linspace(left, right, view.columns + 1)
        ys = np.linspace(top, bottom, view.rows + 1)
        across = grid[:-1, 1:-1] != grid[1:, 1:-1]
        down = grid[1:-1, :-1] != grid[1:-1, 1:]
        found += [((xs[start], ys[row]), (xs[stop], ys[row])) for row, start, stop in _runs(across)]
        found += [((xs[column], ys[start]), (xs[column], ys[stop])) for column, start, stop in _runs(down.T)]
    return np.array(found, dtype=np.float64).reshape(-1, 2, 2)


def _runs(edges: Mask) -> list[tuple[int, int, int]]:
    """(row, start, stop) of every run of True."""
    steps = np.diff(np.pad(edges.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, stops = np.nonzero(steps == -1)
    return list(zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True))
