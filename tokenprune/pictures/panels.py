"""The panels of a figure: a picture with what was kept, scores as a heat map, and where tokens were merged.

Every function draws on axes whose coordinates are shares of the sheet's picture; ``size`` is their width and height in
inches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from tokenprune.adapters.views import Box
from tokenprune.pictures import raster
from tokenprune.pictures.canvas import families
from tokenprune.pictures.look import Look, StageLook
from tokenprune.pictures.sheets import Sheet

#: Perceptually uniform, and the same for readers with colour-vision deficiencies.
COLOURS = "cividis"
#: Of pictures, so that nobody takes their numbers for scores.
PICTURE_COLOURS = "magma"
#: More lines from merged tokens to their targets would hide the rest: on cells of any size, and on large ones (points).
MOST_LINES, MOST_LINES_ON_LARGE, LARGE = 40, 160, 15
#: Colours of the corners of a picture, from which the colour of a target follows: top left, top right, bottom left,
#: bottom right. Blue to orange, and dark to light, are told apart with any colour-vision deficiency.
CORNERS = np.array([[[8, 64, 129], [166, 54, 3]], [[158, 202, 245], [254, 217, 118]]], dtype=np.float64) / 255
#: Scores that are further from most others than this share of their range are cut off.
OUTLIER = 0.25
HATCHED, VOID = "0.55", "0.9"
#: Pixels of a picture's longer side per inch that are enough for print.
PIXELS_PER_INCH = 400

Size = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """The colours of numbers.

    Attributes:
        low: The number with the darkest colour.
        high: The number with the lightest colour.
        beyond: Whether some numbers are lower, and whether some are higher.
        colours: The colour map of matplotlib.
    """

    low: float
    high: float
    beyond: tuple[bool, bool] = (False, False)
    colours: str = COLOURS

    @classmethod
    def of(cls, look: Look, scores: NDArray[np.float32]) -> Scale:
        """From the 2nd to the 98th percentile of the tokens on pictures, where outliers would hide the rest."""
        values = scores[(look.cells[:, 0] >= 0) & np.isfinite(scores)].astype(np.float64)
        if not len(values):
            return cls(0.0, 1.0)
        least, most = float(values.min()), float(values.max())
        low, high = (float(value) for value in np.percentile(values, (2, 98)))
        low = low if low - least > OUTLIER * (high - low) else least
        high = high if most - high > OUTLIER * (high - low) else most
        beyond = least < low, high < most
        if low == high:
            low, high = low - 0.5, high + 0.5
        return cls(low, high, beyond)

    @classmethod
    def of_pictures(cls, look: Look) -> Scale:
        """The colours of the pictures, numbered from 1."""
        return cls(1, 1 + max(view.picture for view in look.views), colours=PICTURE_COLOURS)

    @property
    def ends(self) -> list[str]:
        """Both ends in words, with as many digits as tell them apart."""
        for digits in range(2, 7):
            texts = [f"{value:.{digits}g}" for value in (self.low, self.high)]
            if texts[0] != texts[1]:
                break
        return texts


def draw_picture(axes: Axes, sheet: Sheet, stage: StageLook | None, size: Size) -> None:
    """Draw the picture: kept patches as they are, with a line around them; the others faded."""
    look = sheet.look
    kept = np.ones(look.tokens, dtype=bool) if stage is None else stage.kept
    pixels = raster.base(sheet, max(64, round(PIXELS_PER_INCH * max(size))))
    _begin(axes, sheet)
    shown = raster.faded(pixels, raster.kept_pixels(sheet, kept, pixels.shape), raster.is_bright(look.pictures))
    _image(axes, shown, sheet.extent, interpolation="antialiased")
    for box in sheet.unseen:
        _hatch(axes, box, "0.35", 2)
    if not kept.all():
        _outline(axes, sheet, kept, size)


def draw_scores(axes: Axes, sheet: Sheet, stage: StageLook, scale: Scale, size: Size) -> None:
    """Draw the scores on the grid; tokens without one are hatched, kept ones have a line around them."""
    assert stage.scores is not None
    _begin(axes, sheet, hatched=True)
    scores = np.where(np.isposinf(stage.scores), scale.high, stage.scores)
    scores = np.where(np.isneginf(scores), scale.low, scores).astype(np.float32)
    for number, view in zip(sheet.numbers, sheet.views, strict=True):
        grid = np.ma.masked_invalid(sheet.look.grid(number, scores, np.float32(np.nan)))
        norm = Normalize(scale.low, scale.high)
        _image(axes, grid, view.box, interpolation="nearest", cmap=scale.colours, norm=norm)
    _outline(axes, sheet, stage.kept, size)


def draw_scale(axes: Axes, scale: Scale) -> None:
    """Draw the colours of a scale, with the numbers of both ends."""
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    figure = axes.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(
        ScalarMappable(Normalize(scale.low, scale.high), scale.colours),
        cax=axes,
        orientation="horizontal",
        extend=extend[scale.beyond],
        extendfrac=0.06,
    )
    bar.outline.set_linewidth(0.4)
    bar.set_ticks([scale.low, scale.high], labels=scale.ends)
    axes.tick_params(length=0, pad=1.5, labelsize=6.5, labelfontfamily=families())
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")


def draw_merges(axes: Axes, sheet: Sheet, stage: StageLook, size: Size) -> None:
    """Draw where tokens went: each cell has its target's colour, and targets are marked with a dot.

    Where targets are on other pictures (frames of a video), the colour says on which one.
    """
    look, target = sheet.look, stage.targets
    _begin(axes, sheet, hatched=True)
    colours = target_colours(look, target)
    for number, view in zip(sheet.numbers, sheet.views, strict=True):
        own = look.grid(number, np.arange(look.tokens), -1)
        shown = (own >= 0) & (target[own] >= 0)
        grid = np.zeros((view.rows, view.columns, 4))
        grid[shown, :3] = colours[own[shown]]
        grid[shown, 3] = 1
        _image(axes, grid, view.box, interpolation="nearest")
    points = _cell_points(sheet, size)
    _lines(axes, raster.outlines(sheet, target, -1), (("white", min(0.6, 0.12 * points)),), 3)
    here = np.isin(look.cells[:, 0], sheet.numbers)
    moved = np.flatnonzero(here & (target >= 0) & ~stage.kept)
    near = moved[np.isin(look.cells[target[moved], 0], sheet.numbers)]
    if 0 < len(near) <= (MOST_LINES_ON_LARGE if points >= LARGE else MOST_LINES):
        ends = np.stack([look.centres(near), look.centres(target[near])], axis=1)
        _lines(axes, ends, (("white", 1.4), ("black", 0.5)), 4)
    received = np.zeros(look.tokens, dtype=bool)
    received[target[(target >= 0) & ~stage.kept]] = True
    x, y = look.centres(np.flatnonzero(here & received)).T
    dot = min(4.5, 0.55 * points)
    axes.plot(x, y, "o", ms=dot, mfc="black", mec="white", mew=min(0.6, 0.2 * dot), ls="", zorder=6)


def target_colours(look: Look, target: NDArray[np.int64]) -> NDArray[np.float64]:
    """The colour of each token's target, RGB from 0 to 1, ``[tokens, 3]``; black where there is none.

    Within a picture it follows from where the target is. Where tokens were merged across pictures, it follows from the
    number of the target's picture.
    """
    out = np.zeros((look.tokens, 3))
    tokens = np.flatnonzero((target >= 0) & (look.cells[:, 0] >= 0))
    tokens = tokens[look.cells[target[tokens], 0] >= 0]
    if crosses_pictures(look, target):
        pictures = np.array([view.picture for view in look.views])
        number = pictures[look.cells[target[tokens], 0]]
        out[tokens] = mpl.colormaps[PICTURE_COLOURS](number / max(pictures.max(), 1))[:, :3]
        return out
    x, y = look.centres(target[tokens]).clip(0, 1).T[..., None]
    top = (1 - x) * CORNERS[0, 0] + x * CORNERS[0, 1]
    low = (1 - x) * CORNERS[1, 0] + x * CORNERS[1, 1]
    out[tokens] = (1 - y) * top + y * low
    return out


def crosses_pictures(look: Look, target: NDArray[np.int64]) -> bool:
    """Whether a token was merged into one of another picture."""
    pictures = np.array([*(view.picture for view in look.views), -1])
    own = pictures[look.cells[:, 0]]
    other = np.where(target >= 0, own[target], -1)
    return bool(((own >= 0) & (other >= 0) & (own != other)).any())


def _begin(axes: Axes, sheet: Sheet, hatched: bool = False) -> None:
    """Set the coordinates of a panel; ``hatched`` is for cells that nothing will be drawn on."""
    left, top, right, bottom = sheet.extent
    axes.set(xticks=[], yticks=[], xlim=(left, right), ylim=(bottom, top))
    for spine in axes.spines.values():
        spine.set(linewidth=0.4, color="0.4", zorder=10)
    if hatched:
        axes.set_facecolor(VOID)
        _hatch(axes, sheet.extent, HATCHED, 0.5)


def _image(axes: Axes, pixels: NDArray[Any], box: Box, **style: Any) -> None:
    left, top, right, bottom = box
    axes.imshow(pixels, extent=(left, right, bottom, top), aspect="auto", zorder=1, **style)


def _hatch(axes: Axes, box: Box, colour: str, zorder: float) -> None:
    left, top, right, bottom = box
    style: dict[str, Any] = {"fill": False, "hatch": "/////", "ec": colour, "lw": 0, "zorder": zorder}
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, **style))


def _outline(axes: Axes, sheet: Sheet, kept: NDArray[np.bool_], size: Size) -> None:
    """Draw dark lines around kept cells with a light one on both sides, which are seen on any picture."""
    width = min(0.9, 0.1 * _cell_points(sheet, size))
    lines = raster.outlines(sheet, kept, np.False_)
    _lines(axes, lines, (("white", 2.4 * width), ("black", width)), 3, capstyle="projecting")


def _lines(axes: Axes, lines: raster.Segments, strokes: Sequence[tuple[str, float]], zorder: int, **style: Any) -> None:
    """Draw lines once per stroke, a colour and a width in points; later strokes lie above earlier ones."""
    for above, (colour, width) in enumerate(strokes):
        style |= {"colors": colour, "linewidths": width, "zorder": zorder + above}
        axes.add_collection(LineCollection(list(lines), **style))


def _cell_points(sheet: Sheet, size: Size) -> float:
    """Side of the smallest cell in points."""
    left, top, right, bottom = sheet.extent
    across = min(72 * size[0] * view.width / (right - left) / view.columns for view in sheet.views)
    down = min(72 * size[1] * view.height / (bottom - top) / view.rows for view in sheet.views)
    return float(min(across, down))
