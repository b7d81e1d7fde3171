"""A figure of matplotlib on which panels and texts have places in inches. Imported when it is needed."""

import warnings
from bisect import bisect_right
from functools import cache
from io import BytesIO
from typing import Any

from matplotlib import font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Affine2D, BboxTransformTo, ScaledTranslation

#: A letter that a font lacks is taken from the next one that is installed: Chinese, Japanese, Korean, symbols.
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
#: Settings of matplotlib, while a figure is made and saved: text stays text, and equal figures are equal files.
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


class Drawing(Figure):
    """A figure that a notebook shows by itself, without a magic command."""

    def _repr_png_(self) -> bytes:
        out = BytesIO()
        with rc_context(SETTINGS):
            self.savefig(out, format="png")
        return out.getvalue()


class Canvas:
    """Puts panels, bars and texts on a figure. All lengths are inches from the top left corner.

    Args:
        width: The figure's width. :meth:`figure` takes its height, which is known when everything is placed.
    """

    def __init__(self, width: float) -> None:
        self.width = width
        self._figure = Drawing(figsize=(width, width), dpi=150, facecolor="white")
        FigureCanvasAgg(self._figure)
        from_top = ScaledTranslation(0, 1, BboxTransformTo(self._figure.bbox))
        self._inches = Affine2D().scale(1, -1) + self._figure.dpi_scale_trans + from_top
        self._panels: list[tuple[Axes, float, float, float, float]] = []

    def panel(self, x: float, y: float, width: float, height: float, name: str) -> Axes:
        """Add axes with their left end and their top. ``name`` is their label, and their id in an SVG."""
        axes = self._figure.add_axes((0, 0, 1, 1), label=name, gid=name)
        self._panels.append((axes, x, y, width, height))
        return axes

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """Add a filled rectangle."""
        self._figure.patches.append(Rectangle((x, y), width, height, transform=self._inches, color=colour, lw=0))

    def paragraph(
        self,
        x: float,
        y: float,
        width: float,
        text: str,
        size: float,
        *,
        most: int = 3,
        bold: bool = False,
        end: str = "",
        colour: str = "black",
    ) -> float:
        """Add a text that is wrapped at a width.

        Args:
            x: Left end.
            y: Top.
            width: Lines are no longer.
            text: The text.
            size: Points.
            most: Lines at most; the last one ends with an ellipsis if there is more.
            bold: Whether it is bold.
            end: A text that follows, also where the first one is cut.
            colour: The colour.

        Returns:
            The bottom of the last line.
        """
        style: dict[str, Any] = {"transform": self._inches, "color": colour, "va": "top", "parse_math": False}
        style |= {"fontsize": size, "fontweight": "bold" if bold else "normal", "fontfamily": families()}
        for line in wrapped(text, width, size, most, bold, end):
            self._figure.text(x, y, line, **style)
            y += size * LEADING
        return y

    def figure(self, height: float) -> Figure:
        """The figure, with this height."""
        self._figure.set_size_inches(self.width, height)
        for axes, x, y, width, tall in self._panels:
            axes.set_position((x / self.width, 1 - (y + tall) / height, width / self.width, tall / height))
        return self._figure


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
    """The number of characters that fit, at least one."""
    counts = range(2, len(text) + 1)
    return 1 + bisect_right(counts, width, key=lambda count: length(text[:count] + end, size, bold))
