"""The panels of a figure: a picture with what was kept, scores as a heat map, and where tokens were merged."""

from __future__ import annotations

from collections.abc import Callable
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

from tokenprune.pictures import raster
from tokenprune.pictures.look import Look, StageLook
from tokenprune.pictures.page import families
from tokenprune.pictures.sheets import Sheet, unseen

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
HATCH, HATCHED, VOID = "/////", "0.55", "0.9"

Draw = Callable[[Axes], None]


@dataclass(frozen=True)
class Scale:
    """The colours of scores.

    Attributes:
        low: The score with the darkest colour.
        high: The score with the lightest colour.
        beyond: Whether some scores are lower, and whether some are higher.
    """

    low: float
    high: float
    beyond: tuple[bool, bool]

    @classmethod
    def of(cls, look: Look, scores: NDArray[np.float32]) -> Scale:
        """From the 2nd to the 98th percentile of the tokens on pictures, where outliers would hide the rest."""
        values = scores[(look.cells[:, 0] >= 0) & np.isfinite(scores)].astype(np.float64)
        if not len(values):
            return cls(0.0, 1.0, (False, False))
        least, most = float(values.min()), float(values.max())
        low, high = (float(value) for value in np.percentile(values, (2, 98)))
        low = low if low - least > OUTLIER * (high - low) else least
        high = high if most - high > OUTLIER * (high - low) else most
        beyond = least < low, high < most
        if low == high:
            low, high = low - 0.5, high + 0.5
        return cls(low, high, beyond)


def picture_panel(look: Look, stage: StageLook | None, sheet: Sheet, inches: float, name: str) -> Draw:
    """The picture: kept patches as they are, with a line around them; the others faded."""

    def draw(axes: Axes) -> None:
        kept = np.ones(look.tokens, dtype=bool) if stage is None else stage.kept
        pixels, inside = raster.base(look, sheet, _long_side(inches))
        state = raster.states(look, sheet, kept, inside.shape)
        if stage is None:  # the unpruned model: the picture as it is, with what it did not see marked
            state[inside & (state == raster.DROPPED)] = raster.KEPT
        _begin(axes, sheet, name)
        _image(axes, raster.faded(pixels, state, raster.is_bright(look.pictures)), sheet)
        _hatch_unseen(axes, look, sheet)
        if stage is not None and not kept.all():
            _outline(axes, raster.outlines(look, sheet, kept, np.False_), _cell_points(look, sheet, axes))

    return draw


def heat_panel(look: Look, stage: StageLook, sheet: Sheet, scale: Scale, name: str) -> Draw:
    """The scores on the grid; tokens without one are hatched, kept ones have a line around them."""

    def draw(axes: Axes) -> None:
        assert stage.scores is not None
        _begin(axes, sheet, name)
        axes.set_facecolor(VOID)
        _hatch(axes, sheet.extent)
        scores = np.where(np.isposinf(stage.scores), scale.high, stage.scores)
        scores = np.where(np.isneginf(scores), scale.low, scores).astype(np.float32)
        for index in sheet.views:
            view = look.views[index]
            grid = np.ma.masked_invalid(look.grid(index, scores, np.float32(np.nan)))
            left, top, right, bottom = view.box
            axes.imshow(
                grid,
                cmap=COLOURS,
                norm=Normalize(scale.low, scale.high),
                extent=(left, right, bottom, top),
                aspect="auto",
                interpolation="nearest",
                zorder=1,
            )
        _limits(axes, sheet)
        _outline(axes, raster.outlines(look, sheet, stage.kept, np.False_), _cell_points(look, sheet, axes))

    return draw


def scale_panel(scale: Scale, name: str) -> Draw:
    """The colours of a heat map, with the scores of both ends."""
    return lambda axes: _bar(axes, scale, COLOURS, _ends(scale), name)


def picture_scale_panel(last: int, name: str) -> Draw:
    """The colours of pictures by their numbers, from 1 to ``last``."""
    return lambda axes: _bar(axes, Scale(1, last, (False, False)), PICTURE_COLOURS, ["1", str(last)], name)


def _bar(axes: Axes, scale: Scale, colours: str, ends: list[str], name: str) -> None:
    axes.set_label(name)
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    figure = axes.get_figure(root=True)
    assert figure is not None
    bar = figure.colorbar(
        ScalarMappable(Normalize(scale.low, scale.high), colours),
        cax=axes,
        orientation="horizontal",
        extend=extend[scale.beyond],
        extendfrac=0.06,
    )
    bar.outline.set_linewidth(0.4)
    bar.set_ticks([scale.low, scale.high], labels=ends)
    axes.tick_params(length=0, pad=1.5, labelsize=6.5, labelfontfamily=families())
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")


def merge_panel(look: Look, stage: StageLook, sheet: Sheet, name: str) -> Draw:
    """Where tokens went: each cell has its target's colour, and targets are marked with a dot.

    Where targets are on other pictures (frames of a video), the colour says on which one.
    """

    def draw(axes: Axes) -> None:
        assert stage.merged is not None
        target = raster.roots(stage.kept, stage.merged)
        _begin(axes, sheet, name)
        axes.set_facecolor(VOID)
        _hatch(axes, sheet.extent)
        colours = target_colours(look, target)
        for index in sheet.views:
            view = look.views[index]
            own = look.grid(index, np.arange(look.tokens), -1)
            shown = (own >= 0) & (target[own] >= 0)
            grid = np.zeros((view.rows, view.columns, 4))
            grid[shown, :3] = colours[own[shown]]
            grid[shown, 3] = 1
            left, top, right, bottom = view.box
            axes.imshow(grid, extent=(left, right, bottom, top), aspect="auto", interpolation="nearest", zorder=1)
        _limits(axes, sheet)
        points = _cell_points(look, sheet, axes)
        edges = raster.outlines(look, sheet, target, -1)
        axes.add_collection(LineCollection(list(edges), colors="white", linewidths=min(0.6, 0.12 * points), zorder=3))
        here = np.isin(look.cells[:, 0], sheet.views)
        moved = np.flatnonzero(here & (target >= 0) & ~stage.kept)
        near = moved[np.isin(look.cells[target[moved], 0], sheet.views)]
        if 0 < len(near) <= (MOST_LINES_ON_LARGE if points >= LARGE else MOST_LINES):
            ends = np.stack([raster.centres(look, near), raster.centres(look, target[near])], axis=1)
            axes.add_collection(LineCollection(list(ends), colors="white", linewidths=1.4, zorder=4))
            axes.add_collection(LineCollection(list(ends), colors="black", linewidths=0.5, zorder=5))
        received = np.zeros(look.tokens, dtype=bool)
        received[target[(target >= 0) & ~stage.kept]] = True
        dots = raster.centres(look, np.flatnonzero(here & received))
        side = min(4.5, 0.55 * points)
        axes.plot(
            dots[:, 0], dots[:, 1], "o", ms=side, mfc="black", mec="white", mew=min(0.6, 0.2 * side), ls="", zorder=6
        )

    return draw


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
    x, y = raster.centres(look, target[tokens]).clip(0, 1).T[..., None]
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


def _begin(axes: Axes, sheet: Sheet, name: str) -> None:
    axes.set_label(name)
    axes.set_gid(name)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)
        spine.set_color("0.4")
        spine.set_zorder(10)
    _limits(axes, sheet)


def _limits(axes: Axes, sheet: Sheet) -> None:
    left, top, right, bottom = sheet.extent
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _image(axes: Axes, pixels: raster.Pixels, sheet: Sheet) -> None:
    left, top, right, bottom = sheet.extent
    axes.imshow(pixels, extent=(left, right, bottom, top), aspect="auto", interpolation="antialiased", zorder=1)
    _limits(axes, sheet)


def _hatch(axes: Axes, box: tuple[float, float, float, float]) -> None:
    left, top, right, bottom = box
    axes.add_patch(
        Rectangle((left, top), right - left, bottom - top, fill=False, hatch=HATCH, ec=HATCHED, lw=0, zorder=0.5)
    )


def _hatch_unseen(axes: Axes, look: Look, sheet: Sheet) -> None:
    for left, top, right, bottom in unseen([look.views[index] for index in sheet.views]):
        axes.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, hatch=HATCH, ec="0.35", lw=0, zorder=2)
        )


def _outline(axes: Axes, lines: raster.Segments, points: float) -> None:
    """A dark line with a light one on both sides, which is seen on any picture."""
    width = min(0.9, 0.1 * points)
    ends: Any = {"capstyle": "projecting"}
    axes.add_collection(LineCollection(list(lines), colors="white", linewidths=2.4 * width, zorder=3, **ends))
    axes.add_collection(LineCollection(list(lines), colors="black", linewidths=width, zorder=4, **ends))


def _cell_points(look: Look, sheet: Sheet, axes: Axes) -> float:
    """Side of the smallest cell in points."""
    box = axes.get_position()
    figure = axes.get_figure(root=True)
    assert figure is not None
    width, height = figure.get_size_inches()
    left, top, right, bottom = sheet.extent
    sides = []
    for index in sheet.views:
        view = look.views[index]
        sides.append(72 * width * box.width * (view.box[2] - view.box[0]) / (right - left) / view.columns)
        sides.append(72 * height * box.height * (view.box[3] - view.box[1]) / (bottom - top) / view.rows)
    return float(min(sides))


def _long_side(inches: float) -> int:
    """Pixels of a picture's longer side that are enough for print."""
    return max(64, round(400 * inches))


def _ends(scale: Scale) -> list[str]:
    """Both ends of a scale, with as many digits as tell them apart."""
    for digits in range(2, 7):
        texts = [f"{value:.{digits}g}" for value in (scale.low, scale.high)]
        if texts[0] != texts[1]:
            break
    return texts
