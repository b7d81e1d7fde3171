"""A page of panels and texts at places in inches, which becomes a figure of matplotlib. Imported when it is needed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

#: What a font lacks is looked up in the next that is installed: Chinese, Japanese, Korean, symbols.
FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Zen Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans",
    "Malgun Gothic",
    "Noto Sans",
    "Arial Unicode MS",
)
#: Settings of matplotlib, when a page is made and when it is saved: text stays text, and no file differs from the next.
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tokenprune",
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "axes.unicode_minus": False,
    "hatch.linewidth": 0.5,
    "text.usetex": False,
    "savefig.bbox": None,
    "savefig.facecolor": "auto",
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
    "path.simplify": False,
}
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
LEADING = 1.25 / 72  # inches of a line per point of its size
SLACK = 1.015  # letters stand on whole pixels, so at few dots per inch a text is a little longer


@dataclass(frozen=True)
class Text:
    """A line of text: its left end, or its middle, and its top, in inches from the top left."""

    x: float
    y: float
    text: str
    size: float
    bold: bool = False
    colour: str = "black"
    align: Literal["left", "center", "right"] = "left"


@dataclass
class Page:
    """What will be on a figure. All lengths are inches from its top left corner.

    Attributes:
        width: Of the page.
        texts: The lines of text.
        panels: Left, top, width, height of each panel, and the function that draws in its axes.
        bars: Left, top, width, height and colour of filled rectangles.
    """

    width: float
    texts: list[Text] = field(default_factory=list)
    panels: list[tuple[float, float, float, float, Callable[[Axes], None]]] = field(default_factory=list)
    bars: list[tuple[float, float, float, float, str]] = field(default_factory=list)

    def paragraph(
        self,
        x: float,
        y: float,
        width: float,
        text: str,
        size: float,
        most: int = 3,
        bold: bool = False,
        end: str = "",
        **style: Any,
    ) -> float:
        """Add a text that is wrapped at a width.

        Args:
            x: Left end, or the middle if it is centred.
            y: Top.
            width: Lines are no longer.
            text: The text.
            size: Points.
            most: Lines at most; the last one ends with an ellipsis if there is more.
            bold: Whether it is bold.
            end: What follows the text, also where it is cut.
            style: Further fields of :class:`Text`.

        Returns:
            The bottom of the last line.
        """
        for line in wrapped(text, width, size, most, bold, end):
            self.texts.append(Text(x, y, line, size, bold, **style))
            y += size * LEADING
        return y

    def figure(self, height: float) -> Figure:
        """The page as a figure of this height."""
        with mpl.rc_context(SETTINGS):
            figure = Figure(figsize=(self.width, height), dpi=150, facecolor="white")
            FigureCanvasAgg(figure)
            for x, y, width, tall, draw in self.panels:
                place = (x / self.width, 1 - (y + tall) / height, width / self.width, tall / height)
                draw(figure.add_axes(place))
            for x, y, width, tall, colour in self.bars:
                figure.patches.append(
                    Rectangle(
                        (x / self.width, 1 - (y + tall) / height),
                        width / self.width,
                        tall / height,
                        transform=figure.transFigure,
                        color=colour,
                        lw=0,
                    )
                )
            for text in self.texts:
                figure.text(
                    text.x / self.width,
                    1 - text.y / height,
                    text.text,
                    fontsize=text.size,
                    fontweight="bold" if text.bold else "normal",
                    fontfamily=families(),
                    color=text.colour,
                    ha=text.align,
                    va="top",
                    parse_math=False,
                )
        return figure


@cache
def families() -> list[str]:
    """The fonts that are installed, of those that are asked for."""
    installed = set(font_manager.get_font_names())
    return [name for name in FONTS if name in installed] or ["sans-serif"]


@cache
def _ruler() -> RendererAgg:
    return RendererAgg(8, 8, 300)


@cache
def length(text: str, size: float, bold: bool = False) -> float:
    """Inches that a text is long."""
    font = font_manager.FontProperties(family=families(), size=size, weight="bold" if bold else "normal")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # it is drawn as a box, which has a length, too
        return SLACK * float(_ruler().get_text_width_height_descent(text, font, False)[0]) / 300


def wrapped(text: str, width: float, size: float, most: int, bold: bool = False, end: str = "") -> list[str]:
    """A text as lines that are no longer than ``width`` inches, at most so many; what is cut ends with an ellipsis."""
    lines: list[str] = []
    rest = text.strip()
    while rest:
        if length(rest + end, size, bold) <= width:
            return [*lines, rest + end]
        last = len(lines) + 1 == most
        fit = _fitting(rest, width, size, bold, ELLIPSIS + end if last else "")
        space = rest.rfind(" ", 0, fit + 1)
        cut = space if space > fit // 3 else fit
        if last:
            return [*lines, rest[:cut].rstrip(" ,;:") + ELLIPSIS + end]
        lines.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return lines


def _fitting(text: str, width: float, size: float, bold: bool, end: str) -> int:
    """How many characters fit, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if length(text[:middle] + end, size, bold) <= width:
            low = middle
        else:
            high = middle - 1
    return low
