"""Parts that specifications in Vega-Lite share: axes, styles, labels that do not overlap, the files of a figure.

A specification is plain JSON. Only :func:`library` and :func:`save` need packages of the extra ``report``.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from tokenprune.drawing.palette import GREY, MethodStyle

#: A piece of a specification.
Json = dict[str, Any]

#: Colours of text, of small text, and of lines behind the marks.
INK, SOFT, LINES = "#262626", "#595959", "#E6E6E6"
#: The font of files: vl-convert holds Liberation Sans, so that no font of the machine is needed.
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
#: Pixels of a file's picture for each of a page.
ZOOM = 1.6
#: Lines of a PDF file that name resources of a page.
RESOURCES = re.compile(rb"(?:^ +/\w+ \d+ 0 R\n){2,}", re.MULTILINE)
#: The name of a font in a PDF file, without the letters that say that it is a part of the font.
PDF_FONT = re.compile(rb"/BaseFont /[A-Z]{6}\+([\w-]+)")
#: Times that a PDF is made until its two fonts are in order; one in two is.
TRIES = 40
#: Keeps the methods that are switched on.
SHOWN = {"filter": "indexof(on, datum.method) >= 0"}


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
        ends = {"domain": [self.low, self.high], "nice": False}
        # a format alone would round to the steps of the axis
        shown = {"labelExpr": "format(datum.value, '.6~r')", **({"values": list(ticks)} if ticks else {}), **axis}
        scale = {"type": "log", **ends} if self.log else {"type": "linear", "zero": False, **ends}
        return {"field": field, "type": "quantitative", "scale": scale, "axis": shown, "title": title}

    def round_numbers(self, steps: Sequence[float] = (1,)) -> list[float]:
        """Steps times powers of ten on a logarithmic axis; none on another one."""
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
    order = [{"field": name} for name in ("wanted", "method", "budget")]
    push = [("max", "up", [None, 0]), ("min", "down", [0, None])]
    middle = "(datum.up + datum.down) / 2 + datum.rank * datum.step"
    ends = f"{low} + (datum.rank - 1) * datum.step, {high} - (datum.count - datum.rank) * datum.step"
    return [
        {"calculate": wanted, "as": "wanted"},
        {"window": [{"op": "row_number", "as": "rank"}], "sort": order},
        {"joinaggregate": [{"op": "count", "as": "count"}]},
        {"calculate": f"min({step}, ({high} - ({low})) / max(1, datum.count - 1))", "as": "step"},
        {"calculate": "datum.wanted - datum.rank * datum.step", "as": "free"},
        *(
            {"window": [{"op": op, "field": "free", "as": name}], "sort": [{"field": "rank"}], "frame": frame}
            for op, name, frame in push
        ),
        {"calculate": f"clamp({middle}, {ends})", "as": place},
    ]


def layer(
    mark: str, encoding: Mapping[str, Any], rows: Iterable[Json] | None = None, steps: Iterable[Json] = (), **look: Any
) -> Json:
    """Marks of one kind.

    Args:
        mark: The kind.
        encoding: The channels.
        rows: Data of its own; None for that of the chart.
        steps: Transforms.
        look: Properties of all marks.
    """
    own = {} if rows is None else {"data": {"values": list(rows)}}
    return {**own, "transform": list(steps), "mark": {"type": mark, **look}, "encoding": dict(encoding)}


def channels(styles: Mapping[str, MethodStyle]) -> dict[str, Json]:
    """Colour, marker and dash of every method, as encodings."""
    values = {
        "color": [style.colour for style in styles.values()],
        "shape": [style.marker for style in styles.values()],
        "strokeDash": [[2 * length for length in style.dash] or [1, 0] for style in styles.values()],
    }
    method = {"field": "method", "type": "nominal", "legend": None}
    return {name: {**method, "scale": {"domain": list(styles), "range": scale}} for name, scale in values.items()}


def faded(shown: float) -> Json:
    """Opacity: the other methods fade while one is pointed at in the list of methods."""
    return {"condition": {"test": "focus === '' || focus === datum.method", "value": shown}, "value": 0.08}


def markers(size: int, channel: Mapping[str, Json], **encoding: Any) -> Json:
    """A layer of markers, hollow where ``datum.hollow`` is true. An edge tells overlapping ones from each other.

    Args:
        size: Area of a marker in square pixels.
        channel: The encodings of :func:`channels`.
        encoding: Further encodings, e.g. the place.
    """
    colour, hollow = channel["color"], "datum.hollow"
    looks = {
        "fill": {**colour, "condition": {"test": hollow, "value": "white"}},
        "stroke": {"condition": {"test": hollow, **colour}, "value": "white"},
        "strokeWidth": {"condition": {"test": hollow, "value": 1.2}, "value": 0.6},
        "shape": channel["shape"],
    }
    return layer("point", {**looks, **encoding}, size=size, opacity=1)


def complete(spec: Json, methods: Sequence[str], signals: Mapping[str, object], font: str, **axis: object) -> Json:
    """Add signals and the look of all charts.

    Args:
        spec: The chart.
        methods: All methods; a page sets which ones are on, and which one has the focus.
        signals: Further signals.
        font: The font.
        axis: Further settings of axes.
    """
    values = {"focus": "", "on": list(methods), **signals}
    sizes = {"labelFontSize": 12, "titleFontSize": 13, "titleFontWeight": "normal", "labelOverlap": "greedy"}
    config = {"font": font, "view": {"stroke": None}, "axis": {**sizes, **axis}}
    return {**spec, "params": [{"name": name, "value": value} for name, value in values.items()], "config": config}


def on_page(spec: Json, height: int, title: str, methods: Sequence[str], **signals: object) -> Json:
    """Complete a chart for a page: it is as wide as its place, and the page's style sheet colours the axes."""
    fit = {"type": "fit-x", "contains": "padding"}
    size = {"width": "container", "height": height, "autosize": fit, "background": "transparent", "description": title}
    return complete({**spec, **size}, methods, signals, "system-ui, sans-serif")


def figure(spec: Json, notes: Sequence[str], methods: Sequence[str] = (), **signals: object) -> Json:
    """Complete a chart, or several in rows and columns, for files; notes are lines of small text below."""
    small = {"fontSize": 11, "fontWeight": "normal", "color": SOFT, "lineHeight": 15}
    title = {"text": list(notes), "orient": "bottom", "anchor": "start", "offset": 14, **small}
    inks = {"labelColor": INK, "titleColor": INK, "domainColor": GREY, "tickColor": GREY, "gridColor": LINES}
    made = complete({**spec, "title": title, "background": "white", "padding": 8}, methods, signals, FONT, **inks)
    legend = {"labelColor": INK, "labelFontSize": 12, "title": None}
    titles = {"font": FONT, "color": INK, "fontWeight": "normal", "fontSize": 13}
    return {**made, "config": {**made["config"], "legend": legend, "title": titles, "text": {"color": INK}}}


@cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, which sets ``vegaEmbed`` and needs no network."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")).replace("</script", "<\\/script")


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

    svg = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
    written = [path.with_suffix(end) for end in ends]
    for file in written:
        if file.suffix == ".png":
            file.write_bytes(_png(svg))
        elif file.suffix == ".svg":
            file.write_text(svg, encoding="utf-8")
        else:
            file.write_bytes(_pdf(lambda: vl_convert.svg_to_pdf(svg)))
    return written


def png(spec: Json) -> bytes:
    """The PNG file of a figure.

    Raises:
        ImportError: vl-convert or Pillow is not installed.
    """
    import vl_convert

    return _png(vl_convert.vegalite_to_svg(spec, allowed_base_urls=[]))


def _png(svg: str) -> bytes:
    """A picture of an SVG; packed again, it is a third as large."""
    import vl_convert
    from PIL import Image

    file = BytesIO()
    Image.open(BytesIO(vl_convert.svg_to_png(svg, scale=ZOOM))).convert("RGB").save(file, "PNG", optimize=True)
    return file.getvalue()


def _pdf(make: Callable[[], bytes]) -> bytes:
    """Make a PDF whose bytes are always the same.

    vl-convert lists the resources of a page, and numbers its fonts, in any order. Resources are sorted; a file is made
    again until its fonts are in the order of their names.
    """
    for _ in range(TRIES):
        pdf = make()
        fonts = list(dict.fromkeys(PDF_FONT.findall(pdf)))
        if fonts == sorted(fonts):
            break
    return RESOURCES.sub(lambda run: b"".join(sorted(run[0].splitlines(True))), pdf)
