"""Parts that specifications in Vega-Lite share: axes, styles, labels that do not overlap, the files of a figure.

A specification is plain JSON. Only :func:`library` and :func:`save` need packages of the extra ``report``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from tokenprune.drawing.palette import GREY, MethodStyle

#: A piece of a specification.
Json = dict[str, Any]

#: Markers by their names as SVG paths in the square from -1 to 1.
MARKERS = {
    "o": "M-.85,0a.85,.85,0,1,0,1.7,0a.85,.85,0,1,0,-1.7,0Z",
    "s": "M-.75,-.75H.75V.75H-.75Z",
    "^": "M0,-.9L.95,.75H-.95Z",
    "D": "M0,-1L1,0L0,1L-1,0Z",
    "v": "M0,.9L.95,-.75H-.95Z",
    "P": "M-.36,-.95H.36V-.36H.95V.36H.36V.95H-.36V.36H-.95V-.36H-.36Z",
    "X": "M-.9,-.45L-.45,-.9L0,-.45L.45,-.9L.9,-.45L.45,0L.9,.45L.45,.9L0,.45L-.45,.9L-.9,.45L-.45,0Z",
    "*": "M0,-1.2L.31,-.4L1.16,-.37L.5,.17L.72,1L0,.53L-.72,1L-.5,.17L-1.16,-.37L-.31,-.4Z",
    "": "M-.9,-.2H.9V.2H-.9Z",
}
#: Colours of text, of small text, and of lines behind the marks.
INK, SOFT, LINES = "#262626", "#595959", "#E6E6E6"
#: The font of files: vl-convert holds Liberation Sans, so that no font of the machine is needed.
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
#: Pixels of a file's picture for each of a page.
ZOOM = 1.6
#: The newest version of Vega-Lite that specifications are written for.
VEGA_LITE = "6."
#: Lines of a PDF file that name resources of a page.
RESOURCES = re.compile(rb"(?:^ +/\w+ \d+ 0 R\n){2,}", re.MULTILINE)
#: Whether a method is switched on, and whether it or none is pointed at, as expressions.
SHOWN, FOCUSED = "indexof(on, datum.method) >= 0", "focus === '' || focus === datum.method"


@dataclass(frozen=True)
class Scale:
    """An axis of numbers.

    Attributes:
        low: Its lower end.
        high: Its upper end.
        log: Whether it is logarithmic.
    """

    low: float
    high: float
    log: bool = False

    def share(self, value: str) -> str:
        """The place of a value, 0 at the lower end and 1 at the upper one, as an expression."""
        if self.log:
            return f"(log({value} / {self.low!r}) / {math.log(self.high / self.low)!r})"
        return f"(({value} - {self.low!r}) / {self.high - self.low!r})"

    def value(self, share: str) -> str:
        """The value at a place, as an expression."""
        if self.log:
            return f"{self.low!r} * pow({self.high / self.low!r}, {share})"
        return f"{self.low!r} + {self.high - self.low!r} * {share}"

    def channel(self, field: str, title: str, ticks: Sequence[float] = (), **axis: Any) -> Json:
        """Encode a field on this axis.

        Args:
            field: The field.
            title: The axis' title.
            ticks: Where the ticks stand; empty for even distances.
            axis: Further settings of the axis.
        """
        kind: Json = {"type": "log"} if self.log else {"type": "linear", "zero": False}
        # a format alone would round to the steps of the axis
        shown: Json = {"labelExpr": "format(datum.value, '.6~r')", **({"values": list(ticks)} if ticks else {}), **axis}
        return {
            "field": field,
            "type": "quantitative",
            "scale": {**kind, "domain": [self.low, self.high], "nice": False},
            "axis": shown,
            "title": title,
        }

    def nice(self, steps: Sequence[float] = (1, 2, 3, 5, 7)) -> list[float]:
        """Round numbers on a logarithmic axis; none on another one."""
        if not self.log:
            return []
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = [step * 10.0**power for power in powers for step in steps]
        return [value for value in values if self.low <= value <= self.high]


def spread(wanted: str, step: str, low: str, high: str, place: str) -> list[Json]:
    """Move marks on a line apart: each is near its wanted place, and neighbours are at least a step apart.

    Each mark stands in the middle between where it is when all are pushed up, and when all are pushed down. The marks
    keep their order; those at one place stand around it. Where there is no room for all, the step is shorter.

    Args:
        wanted: The wanted place, as an expression.
        step: The distance that neighbours need; ``datum.count`` is the number of marks.
        low: The lowest place.
        high: The highest place.
        place: The field for the place.

    Returns:
        Transforms.
    """
    by_rank, number = [{"field": "rank"}], [{"op": "row_number", "as": "rank"}]
    return [
        {"calculate": wanted, "as": "wanted"},
        {"window": number, "sort": [{"field": name} for name in ("wanted", "method", "budget")]},
        {"joinaggregate": [{"op": "count", "as": "count"}]},
        {"calculate": f"min({step}, ({high} - ({low})) / max(1, datum.count - 1))", "as": "step"},
        {"calculate": "datum.wanted - datum.rank * datum.step", "as": "free"},
        {"window": [{"op": "max", "field": "free", "as": "up"}], "sort": by_rank, "frame": [None, 0]},
        {"window": [{"op": "min", "field": "free", "as": "down"}], "sort": by_rank, "frame": [0, None]},
        {
            "calculate": f"clamp((datum.up + datum.down) / 2 + datum.rank * datum.step,"
            f" {low} + (datum.rank - 1) * datum.step, {high} - (datum.count - datum.rank) * datum.step)",
            "as": place,
        },
    ]


def channels(styles: Mapping[str, MethodStyle]) -> dict[str, Json]:
    """Colour, marker and dash of every method, as encodings."""
    values = {
        "color": [style.colour for style in styles.values()],
        "shape": [MARKERS[style.marker] for style in styles.values()],
        "strokeDash": [[2 * length for length in style.dash] or [1, 0] for style in styles.values()],
    }
    return {
        name: {
            "field": "method",
            "type": "nominal",
            "scale": {"domain": list(styles), "range": scale},
            "legend": None,
        }
        for name, scale in values.items()
    }


def faded(shown: float) -> Json:
    """Opacity: the other methods fade while one is pointed at in the list of methods."""
    return {"condition": {"test": FOCUSED, "value": shown}, "value": 0.08}


def marker(size: int, channel: Mapping[str, Json], **encoding: Json | list[Json]) -> Json:
    """A layer of markers, hollow where ``datum.hollow`` is true.

    Args:
        size: Area of a marker in square pixels.
        channel: The encodings of :func:`channels`.
        encoding: Further encodings, e.g. the place.
    """
    colour, hollow = channel["color"], "datum.hollow"  # an edge tells overlapping marks from each other
    looks = {
        "fill": {**colour, "condition": {"test": hollow, "value": "white"}},
        "stroke": {"condition": {"test": hollow, **colour}, "value": "white"},
        "strokeWidth": {"condition": {"test": hollow, "value": 1.2}, "value": 0.6},
        "shape": channel["shape"],
    }
    return {"mark": {"type": "point", "size": size, "opacity": 1}, "encoding": {**looks, **encoding}}


def tooltip(**titles: str) -> list[Json]:
    """Fields of a tooltip with their titles."""
    return [{"field": field, "type": "nominal", "title": title} for field, title in titles.items()]


def params(methods: Iterable[str], **more: object) -> list[Json]:
    """Signals that a page sets: which methods are shown, and which one is pointed at."""
    return [{"name": name, "value": value} for name, value in {"focus": "", "on": list(methods), **more}.items()]


def config(**more: Any) -> Json:
    """The look of all charts."""
    return {
        "view": {"stroke": None},
        "axis": {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal", "labelOverlap": "greedy"},
        **more,
    }


def on_page(spec: Json, height: int, label: str, methods: Sequence[str], **more: object) -> Json:
    """Complete a chart for a page: it is as wide as its place, and the page's style sheet colours the axes.

    Args:
        spec: The chart.
        height: Its height in pixels.
        label: A sentence for readers who do not see it.
        methods: All methods.
        more: Further signals.
    """
    return {
        **spec,
        "width": "container",
        "height": height,
        "background": "transparent",
        "description": label,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "params": params(methods, **more),
        "config": config(font="system-ui, sans-serif"),
    }


def figure(spec: Json, notes: Sequence[str], methods: Sequence[str], **more: object) -> Json:
    """Complete charts for files.

    Args:
        spec: A chart, or several in rows and columns.
        notes: Lines of small text below it.
        methods: All methods.
        more: Further signals.
    """
    title = {"text": list(notes), "orient": "bottom", "anchor": "start", "offset": 14}
    small = {"fontSize": 11, "fontWeight": "normal", "color": SOFT, "lineHeight": 15}
    axis = {"labelColor": INK, "titleColor": INK, "domainColor": GREY, "tickColor": GREY, "gridColor": LINES}
    return {
        **spec,
        "title": {**title, **small},
        "background": "white",
        "padding": 8,
        "params": params(methods, **more),
        "config": {
            **config(font=FONT, text={"color": INK, "font": FONT}),
            "axis": {**config()["axis"], **axis},
            "title": {"font": FONT, "color": INK},
            "legend": {"labelColor": INK, "labelFontSize": 12, "title": None},
        },
    }


@cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, which sets ``vegaEmbed`` and needs no network."""
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version())
    return str(bundle).replace("</script", "<\\/script")


@cache
def version() -> str:
    """The version of Vega-Lite that charts are drawn with."""
    import vl_convert

    return [str(found) for found in vl_convert.get_vegalite_versions() if found.startswith(VEGA_LITE)][-1]


def save(spec: Json, path: Path, ends: Iterable[str] = (".png", ".svg", ".pdf")) -> list[Path]:
    """Write a figure as PNG for screens, SVG for pages and PDF for papers.

    SVG and PDF hold text as text. The same figure always gives the same bytes.

    Args:
        spec: The figure.
        path: One of the files; the others have other ends.
        ends: The ends of the files.

    Returns:
        The paths of the files.

    Raises:
        ImportError: vl-convert or Pillow is not installed.
    """
    import vl_convert
    from PIL import Image

    svg = vl_convert.vegalite_to_svg(spec, vl_version=version(), allowed_base_urls=[])
    written = [path.with_suffix(end) for end in ends]
    for file in written:
        if file.suffix == ".png":  # packed again, it is a third as large
            Image.open(BytesIO(vl_convert.svg_to_png(svg, scale=ZOOM))).convert("RGB").save(file, optimize=True)
        elif file.suffix == ".svg":
            file.write_text(svg, encoding="utf-8")
        else:  # svg_to_pdf lists the resources of a page in any order
            pdf = vl_convert.svg_to_pdf(svg)
            file.write_bytes(RESOURCES.sub(lambda run: b"".join(sorted(run[0].splitlines(True))), pdf))
    return written
