"""What all plots share: their look, the three files of each, and where names go.

It needs matplotlib (the extra ``report``).

PNG is for screens, SVG for pages, PDF for papers. SVG holds its text as text, PDF embeds TrueType fonts. The same
figure always gives the same bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokenprune.palette import MethodStyle

#: Colour of text: dark grey.
INK = "0.15"
#: What differs from matplotlib's defaults.
LOOK: Mapping[str, Any] = {
    "figure.dpi": 150,
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.5",
    "axes.axisbelow": True,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "0.92",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "tokenprune",
    "pdf.fonttype": 42,
}
#: File name's end -> metadata that would differ from one call to the next.
DATES: Mapping[str, dict[str, None]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def marker_size(style: MethodStyle) -> float:
    """Size of a marker in points: stars look smaller than they are."""
    return 8.0 if style.marker == "*" else 5.0


@contextmanager
def look() -> Iterator[None]:
    """Draw with our look inside the block. Saving belongs into the block, too."""
    with mpl.rc_context(dict(LOOK)):
        yield


def footnote(figure: Figure, text: str) -> None:
    """Put small grey text below a figure, from its left edge on."""
    figure.supxlabel(text, fontsize=8, color="0.35", ha="left", x=0.01)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG, SVG and PDF.

    Args:
        figure: The figure.
        path: The PNG file; the others have other ends.

    Returns:
        The paths of the three files.
    """
    for _ in range(2):  # texts that hang on an axes move with it: the second pass sees where they are
        figure.draw_without_rendering()
    figure.set_layout_engine("none")
    written = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # it is drawn as a box
        for end, metadata in DATES.items():
            figure.savefig(path.with_suffix(end), metadata=metadata)
            written.append(path.with_suffix(end))
    return written


def spread(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float] | None:
    """Centres of labels that do not overlap, as near as possible to where they are wanted.

    The sum of the squared distances is as small as possible (pool adjacent violators), and labels keep their order.

    Args:
        wanted: Wanted centre of each label.
        heights: Height of each label, in the same unit.
        low: Where the first label may begin.
        high: Where the last label must end.

    Returns:
        The centre of each label, in the order given; None if there is no room for all.
    """
    if sum(heights) > high - low:
        return None
    order = sorted(range(len(wanted)), key=lambda index: (wanted[index], index))
    starts, total = [], 0.0  # where each label would begin if all were packed from zero
    for index in order:
        starts.append(total + heights[index] / 2)
        total += heights[index]
    pools: list[list[float]] = []  # [sum, count] of what is left of the wanted centres without that packing
    for index, start in zip(order, starts, strict=True):
        pools.append([wanted[index] - start, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            value, count = pools.pop()
            pools[-1][0] += value
            pools[-1][1] += count
    shifts = [value / count for value, count in pools for _ in range(int(count))]
    centres = [0.0] * len(wanted)
    for index, start, shift in zip(order, starts, shifts, strict=True):
        centres[index] = start + min(max(shift, low), high - total)
    return centres


def side_by_side(values: Sequence[float], near: float, step: float) -> list[float]:
    """Values with those that are nearly equal moved apart, in the order given, around their middle.

    Args:
        values: Places on an axis.
        near: Neighbours closer than this are a group.
        step: Distance within a group; down to a half of it where the next group is near.
    """
    order = sorted(range(len(values)), key=lambda index: (values[index], index))
    groups: list[list[int]] = []
    for index in order:
        if groups and values[index] - values[groups[-1][-1]] < near:
            groups[-1].append(index)
        else:
            groups.append([index])
    moved = list(values)
    edges = [(values[group[0]], values[group[-1]]) for group in groups]
    for number, group in enumerate(groups):
        low, high = edges[number]
        gaps = [low - edge for _, edge in edges[max(number - 1, 0) : number]]
        gaps += [edge - high for edge, _ in edges[number + 1 : number + 2]]
        here = max(min([step, *(0.7 * gap / len(group) for gap in gaps)]), step / 2)
        middle = (low + high) / 2
        for place, index in enumerate(sorted(group)):
            moved[index] = middle + here * (place - (len(group) - 1) / 2) if len(group) > 1 else values[index]
    return moved


@dataclass(frozen=True)
class LineEnd:
    """The right end of a line that is to be named.

    Attributes:
        name: What is written.
        style: How the line is drawn.
        x: Its end in data coordinates.
        y: Its end in data coordinates.
    """

    name: str
    style: MethodStyle
    x: float
    y: float


def name_lines(axes: Axes, ends: Sequence[LineEnd]) -> bool:
    """Write names right of an axes, each beside the end of its line, without overlaps.

    Args:
        axes: The axes, with its final limits and size.
        ends: The lines.

    Returns:
        Whether there was room; else nothing is written.
    """
    figure = axes.figure.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # the layout gives the axes its height
    box = axes.get_window_extent()
    line = 1.35 * mpl.rcParams["font.size"] * figure.dpi / 72
    wanted = [axes.transData.transform((end.x, end.y))[1] for end in ends]
    margin = 0.06 * box.height
    centres = spread(wanted, [line] * len(ends), box.y0 - margin, box.y1 + margin)
    if centres is None:
        return False
    for end, centre in zip(ends, centres, strict=True):
        height = (centre - box.y0) / box.height
        axes.annotate(
            end.name,
            (end.x, end.y),
            xytext=(1.075, height),
            textcoords="axes fraction",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": end.style.colour,
                "lw": 0.6,
                "alpha": 0.7,
                "shrinkA": 9,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )
        axes.plot(
            [1.055],
            [height],
            transform=axes.transAxes,
            clip_on=False,
            color=end.style.colour,
            marker=end.style.marker or "_",
            markersize=marker_size(end.style),
        )
    return True
