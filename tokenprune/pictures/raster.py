"""Pixels of a sheet: kept patches as they are, dropped ones faded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenprune.pictures.look import Look
from tokenprune.pictures.sheets import Sheet

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
#: Segments of lines, ``[segments, 2 ends, (x, y)]``.
Segments = NDArray[np.float64]

#: Pixels of a cell at least, so that its edges are where they should be.
FEWEST = 8
#: What stands for a picture that is not known, and for what a processor added around one.
BLANK, PADDING = 178, 225
#: Pictures whose mean is higher are white pages.
BRIGHT = 185
#: States of a pixel.
UNSEEN, DROPPED, KEPT = 0, 1, 2


def base(look: Look, sheet: Sheet, long_side: int) -> tuple[Pixels, Mask]:
    """The pixels of a sheet before anything is faded, and which of them belong to the picture.

    Args:
        look: The look.
        sheet: The sheet.
        long_side: A picture with a longer side than this is scaled down, in pixels.

    Returns:
        uint8 ``[height, width, 3]`` and bool ``[height, width]``.
    """
    if look.pictures:
        picture = np.ascontiguousarray(look.pictures[sheet.picture])
    else:
        views = [look.views[index] for index in sheet.views]
        width = max(round(view.columns / (view.box[2] - view.box[0])) for view in views)
        height = max(round(view.rows / (view.box[3] - view.box[1])) for view in views)
        picture = np.full((height, width, 3), BLANK, dtype=np.uint8)
    picture = _resized(picture, look, sheet, long_side)
    height, width = picture.shape[:2]
    left, top, right, bottom = sheet.extent
    columns, rows = round((right - left) * width), round((bottom - top) * height)
    out = np.full((rows, columns, 3), PADDING, dtype=np.uint8)
    inside = np.zeros((rows, columns), dtype=bool)
    x, y = round(-left * width), round(-top * height)
    out[y : y + height, x : x + width] = picture
    inside[y : y + height, x : x + width] = True
    return out, inside


def _resized(picture: Pixels, look: Look, sheet: Sheet, long_side: int) -> Pixels:
    height, width = picture.shape[:2]
    across = down = 1.0  # each by itself: a picture of 1 x 8000 pixels would else become one of gigabytes
    for view in (look.views[index] for index in sheet.views):
        left, top, right, bottom = view.box
        across = max(across, FEWEST * view.columns / ((right - left) * width))
        down = max(down, FEWEST * view.rows / ((bottom - top) * height))
    if across > 1 or down > 1:
        return picture.repeat(math.ceil(down), axis=0).repeat(math.ceil(across), axis=1)
    factor = max(height, width) // long_side
    if factor < 2:
        return picture
    # whole blocks are averaged; what is left over at the right and at the bottom repeats the edge
    padded = np.pad(picture, ((0, -height % factor), (0, -width % factor), (0, 0)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // factor, factor, padded.shape[1] // factor, factor, 3)
    mean: Pixels = blocks.mean(axis=(1, 3)).round().astype(np.uint8)
    return mean


def states(look: Look, sheet: Sheet, kept: Mask, shape: tuple[int, int]) -> NDArray[np.int8]:
    """Whether each pixel of a sheet was kept, dropped, or not seen by the model, int8 ``shape``."""
    out = np.full(shape, UNSEEN, dtype=np.int8)
    xs = _centres(sheet.extent[0], sheet.extent[2], shape[1])
    ys = _centres(sheet.extent[1], sheet.extent[3], shape[0])
    token = np.ones(look.tokens, dtype=np.int8)
    for index in sheet.views:
        view = look.views[index]
        left, top, right, bottom = view.box
        grid = look.grid(index, token + kept, np.int8(UNSEEN))
        columns = np.floor((xs - left) / (right - left) * view.columns).astype(int)
        rows = np.floor((ys - top) / (bottom - top) * view.rows).astype(int)
        across = np.flatnonzero((columns >= 0) & (columns < view.columns))
        down = np.flatnonzero((rows >= 0) & (rows < view.rows))
        out[np.ix_(down, across)] = grid[np.ix_(rows[down], columns[across])]
    return out


def _centres(first: float, last: float, count: int) -> NDArray[np.float64]:
    return first + (np.arange(count) + 0.5) / count * (last - first)


def is_bright(pictures: Sequence[Pixels]) -> bool:
    """Whether pictures are mostly white paper: scans, charts."""
    return bool(pictures) and float(np.mean([picture[::4, ::4].mean() for picture in pictures])) > BRIGHT


def faded(pixels: Pixels, state: NDArray[np.int8], bright: bool) -> Pixels:
    """Kept pixels as they are; dropped and unseen ones lose their colour and most of their contrast.

    Dropped parts of ordinary pictures become light, and those of white pages become dark: either way the kept ones
    stand out, on paper, too.

    Args:
        pixels: uint8 ``[height, width, 3]``.
        state: What became of each pixel, ``[height, width]``; see :func:`states`.
        bright: Whether the pictures of the sample are white pages.
    """
    paper = 105.0 if bright else 238.0
    grey = (pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]
    dropped = 0.22 * grey + 0.08 * pixels + 0.7 * paper
    return np.where((state == KEPT)[..., None], pixels, dropped.round().clip(0, 255)).astype(np.uint8)


def outlines(look: Look, sheet: Sheet, groups: NDArray[Any], empty: Any) -> Segments:
    """The lines between cells whose values differ, in shares of the picture.

    Args:
        look: The look.
        sheet: The sheet.
        groups: A value per token, ``[tokens]``: whether it is kept, the cluster that it is in ...
        empty: The value of cells without a token, and of what lies around the grid.

    Returns:
        ``[lines, 2, 2]``; lines that go on straight are one.
    """
    found: list[tuple[tuple[float, float], tuple[float, float]]] = []
    for index in sheet.views:
        view = look.views[index]
        left, top, right, bottom = view.box
        grid = np.pad(look.grid(index, groups, empty), 1, constant_values=empty)
        xs = np.linspace(left, right, view.columns + 1)
        ys = np.linspace(top, bottom, view.rows + 1)
        across = grid[:-1, 1:-1] != grid[1:, 1:-1]
        down = grid[1:-1, :-1] != grid[1:-1, 1:]
        for row, column, stop in _runs(across):
            found.append(((xs[column], ys[row]), (xs[stop], ys[row])))
        for column, row, stop in _runs(down.T):
            found.append(((xs[column], ys[row]), (xs[column], ys[stop])))
    return np.array(found, dtype=np.float64).reshape(-1, 2, 2)


def _runs(edges: Mask) -> list[tuple[int, int, int]]:
    """(row, start, stop) of every run of True."""
    steps = np.diff(np.pad(edges.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, stops = np.nonzero(steps == -1)
    return list(zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True))


def centres(look: Look, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Where the centres of tokens are, in shares of their pictures, ``[tokens, 2]``; NaN for those on no picture."""
    out = np.full((len(tokens), 2), np.nan)
    for place, token in enumerate(tokens):
        index, row, column = look.cells[token]
        if index >= 0:
            view = look.views[index]
            left, top, right, bottom = view.box
            out[place] = (
                left + (column + 0.5) / view.columns * (right - left),
                top + (row + 0.5) / view.rows * (bottom - top),
            )
    return out


def roots(kept: Mask, merged: NDArray[np.int64]) -> NDArray[np.int64]:
    """The token that each token ended in, int64 ``[tokens]``: itself where it was kept, -1 where it is in none.

    A token may have been merged into one that was itself merged.
    """
    own = np.arange(len(kept))
    out = np.where(kept, own, np.where(merged >= 0, merged, -1))
    for _ in range(len(kept)):
        onward = np.where(out >= 0, out[out], -1)
        if np.array_equal(onward, out):
            break
        out = onward
    return out
