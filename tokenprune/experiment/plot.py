"""Pictures of accuracy against cost and against visual tokens kept. Needs matplotlib (the extra ``report``)."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from tokenprune.core.references import UNPRUNED, is_random, is_reference
from tokenprune.experiment.summary import SeriesSummary, by_budget
from tokenprune.palette import GREY, MethodStyle, styles
from tokenprune.plotting import LineEnd, footnote, look, marker_size, name_lines, save, side_by_side

#: Methods, without those that they are compared with, that get a line of their own each.
MOST_LINES = 10
#: The best of more methods than that, which are still drawn in colour.
BEST = 7
#: Panels side by side of the picture by budget.
PANELS = 4
#: Numbers on an axis that differ by more than this factor are drawn on a logarithmic one.
WIDE = 2.5
#: Points closer than this share of the axis are moved apart, by :data:`STEP`.
NEAR, STEP = 0.012, 0.016
#: The colour of methods that are not among the best.
FAINT = "0.8"
#: Letters of a line of small text below the panels.
LETTERS = 165
#: Pixels that a tick's number needs, before the layout.
TICK = 39

Cost = Literal["average", "visual"]
#: What the two panels have on their axes.
COSTS: Mapping[Cost, str] = {
    "average": "cost: visual tokens, mean over the decoder's layers",
    "visual": "visual tokens kept after the last stage",
}


def accuracy_plot(summaries: Sequence[SeriesSummary], path: Path, quality: str = "accuracy") -> list[Path]:
    """Draw accuracy against the cost, beside accuracy against visual tokens kept, with 95 % intervals.

    Every method has its line. Of more than :data:`MOST_LINES` methods only the best have colours, and a second picture
    (``-by-budget`` in its name) shows all of them: a panel per budget, a row per method.

    Args:
        summaries: The rows of the table.
        path: The PNG file to write; SVG and PDF are written beside it.
        quality: What the scores are.

    Returns:
        The paths of the files.
    """
    written = comparison_plot({"": summaries}, path, quality)
    if len(_own(summaries)) > MOST_LINES:
        written += by_budget_plot(summaries, path.with_name(f"{path.stem}-by-budget.png"), quality)
    return written


def comparison_plot(
    results: Mapping[str, Sequence[SeriesSummary]], path: Path, quality: str = "accuracy"
) -> list[Path]:
    """Draw several results below each other on the same axes.

    Args:
        results: The rows of each table by the result's name.
        path: The PNG file to write; SVG and PDF are written beside it.
        quality: What the scores are.

    Returns:
        The paths of the files.
    """
    names = {item.method for summaries in results.values() for item in summaries}
    drawn = [_Lines(name, summaries, styles(names)) for name, summaries in results.items()]
    with look():
        figure = Figure(figsize=(10, 4.4 * len(drawn) - 0.4 * (len(drawn) - 1)), layout="constrained")
        rows = figure.subplots(len(drawn), 2, sharey=True, sharex="col", squeeze=False)
        for panels, lines in zip(rows, drawn, strict=True):
            for axes, cost in zip(panels, COSTS, strict=True):
                lines.draw(axes, cost)
                axes.grid(axis="y")
            panels[0].set_ylabel(f"{quality}, %")
            if lines.title:
                panels[0].set_title(lines.title, loc="left", fontsize=10, fontweight="bold")
        for axes, cost in zip(rows[-1], COSTS, strict=True):
            most = max(len(lines.methods) - len(lines.faint) for lines in drawn)
            values = [value for lines in drawn for value in lines.values(cost)]
            _scale(axes, values, room=0.04 + STEP * most / 2, ticks_at_values=cost == "visual")
            axes.set_xlabel(COSTS[cost])
        for panels, lines in zip(rows, drawn, strict=True):
            for axes, cost in zip(panels, COSTS, strict=True):
                lines.mark(axes, cost)
        _at_least_ten_points(rows[0][0])
        _notes(figure, drawn)
        named = [name_lines(panels[-1], lines.ends) for panels, lines in zip(rows, drawn, strict=True)]
        if not all(named):
            _legend(figure, drawn)
        return save(figure, path)


@dataclass
class _Lines:
    """The lines of one result.

    Attributes:
        title: The result's name.
        summaries: Its rows.
        styles: The style of every method.
        methods: The points of every method that has some, the best method first.
        faint: Methods that are drawn faintly.
        ends: What is to be named, known after :meth:`mark`.
    """

    title: str
    summaries: Sequence[SeriesSummary]
    styles: Mapping[str, MethodStyle]
    methods: dict[str, list[SeriesSummary]] = field(init=False)
    faint: list[str] = field(init=False)
    ends: list[LineEnd] = field(default_factory=list)

    def __post_init__(self) -> None:
        points: dict[str, list[SeriesSummary]] = defaultdict(list)
        for item in self.summaries:
            if item.budget and math.isfinite(item.accuracy.mean):
                points[item.method].append(item)
        self.methods = {name: points[name] for name in ranked(self.summaries)}
        own = [name for name in self.methods if not is_reference(name)]
        self.faint = own[BEST:] if len(own) > MOST_LINES else []

    def values(self, cost: Cost) -> list[float]:
        """All numbers on an axis."""
        return [getattr(item, cost) for points in self.methods.values() for item in points]

    def draw(self, axes: Axes, cost: Cost) -> None:
        """Draw what needs no final axes: the unpruned model, and faint lines."""
        for item in self.summaries:
            if item.method == UNPRUNED and math.isfinite(item.accuracy.mean):
                below, above = item.accuracy.error_bars
                mean = item.accuracy.mean
                axes.axhspan(100 * (mean - below), 100 * (mean + above), color="0.93", lw=0)
                axes.axhline(100 * mean, color=GREY, lw=1)
        for name in self.faint:
            points = sorted(self.methods[name], key=lambda item: (item.average, item.visual))
            xs, ys = [getattr(item, cost) for item in points], [100 * item.accuracy.mean for item in points]
            axes.plot(xs, ys, color=FAINT, lw=0.8, marker="o", markersize=2.5, zorder=1)

    def mark(self, axes: Axes, cost: Cost) -> None:
        """Draw the points of the coloured methods, with intervals; those of one cost stand side by side."""
        shown = [(name, item) for name in self.methods if name not in self.faint for item in self.methods[name]]
        order = {name: place for place, name in enumerate(sorted(self.methods))}
        shown.sort(key=lambda point: order[point[0]])
        to_axes = axes.transData + axes.transAxes.inverted()
        places = [float(to_axes.transform((getattr(item, cost), 0))[0]) for _, item in shown]
        moved = side_by_side(places, NEAR, STEP)
        xs = [float(to_axes.inverted().transform((place, 0))[0]) for place in moved]
        self.ends = []
        for name in dict.fromkeys(name for name, _ in shown):
            mine = [(x, item) for x, (method, item) in zip(xs, shown, strict=True) if method == name]
            mine.sort(key=lambda point: (point[1].average, point[0]))  # a line goes from budget to budget
            items = [item for _, item in mine]
            style, heights = self.styles[name], [100 * item.accuracy.mean for item in items]
            bars = [item.accuracy.error_bars for item in items]
            axes.errorbar(
                [x for x, _ in mine],
                heights,
                yerr=[[100 * bar[side] for bar in bars] for side in (0, 1)],
                color=style.colour,
                linestyle=(0, style.dash) if style.dash else "-",
                lw=1.2,
                elinewidth=0.8,
                marker=style.marker,
                markersize=marker_size(style),
                markeredgecolor="white",
                markeredgewidth=0.5,
                zorder=2 if is_reference(name) else 3,
                label=name,
            )
            end = max(range(len(mine)), key=lambda index: mine[index][0])
            self.ends.append(LineEnd(name, style, mine[end][0], heights[end]))


def _scale(axes: Axes, values: Sequence[float], room: float, ticks_at_values: bool) -> None:
    """Limits, scale and ticks of an axis of tokens.

    Args:
        axes: The axes.
        values: All numbers on it.
        room: Free at both ends, as a share of the numbers' range: points that are moved apart need it.
        ticks_at_values: Whether the ticks stand at the numbers, where there is room.
    """
    known = [value for value in values if math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    shown = FuncFormatter(lambda value, _: f"{value:.4g}")
    if low > 0 and high > WIDE * low:
        axes.set_xscale("log")
        free = (high / low) ** room
        axes.set_xlim(low / free, high * free)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    else:
        free = room * (high - low) or 0.5 * high or 1.0
        axes.set_xlim(low - free, high + free)
        axes.xaxis.set_major_locator(MaxNLocator(6))
    places = sorted({round(value, 1) for value in known})
    pixels = [axes.transData.transform((place, 0))[0] for place in places]
    apart = all(right - left > TICK for left, right in pairwise(pixels))
    if ticks_at_values and places and apart:
        axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(shown)


def _at_least_ten_points(axes: Axes) -> None:
    """Keep differences of a point or two from filling the whole height."""
    low, high = axes.get_ylim()
    free = max(0.0, 10 - (high - low)) / 2
    axes.set_ylim(low - free, high + free)


def _notes(figure: Figure, drawn: Sequence[_Lines]) -> None:
    """What a reader must know, below the panels; and the names of faint lines."""
    whole = [
        f"{item.visual:.0f} tokens" + (f" in {lines.title}" if lines.title else "")
        for lines in drawn
        for item in lines.summaries
        if item.method == UNPRUNED
    ]
    unpruned = f"the unpruned model ({', '.join(whole)})" if whole else "the unpruned model"
    lines = _wrapped(
        f"Bars: 95 % intervals; grey line and band: {unpruned}. Points of equal cost stand side by side.", LETTERS
    )
    for item in drawn:
        if item.faint:
            where = f" of {item.title}" if item.title else ""
            lines += _wrapped(f"Light grey{where}, the best first: {', '.join(item.faint)}.", LETTERS)
    footnote(figure, "\n".join(lines))


def _wrapped(text: str, width: int) -> list[str]:
    """Text in lines of at most so many characters; names with hyphens stay whole."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)


def _legend(figure: Figure, drawn: Sequence[_Lines]) -> None:
    """One legend of all lines, below the panels."""
    found = {end.name: end.style for lines in drawn for end in lines.ends}
    handles = [
        Line2D([], [], color=style.colour, marker=style.marker, linestyle=(0, style.dash) if style.dash else "-")
        for style in found.values()
    ]
    figure.legend(handles, list(found), loc="outside right upper")


def by_budget_plot(summaries: Sequence[SeriesSummary], path: Path, quality: str = "accuracy") -> list[Path]:
    """Draw a panel per budget and a row per method, the best on average on top, with its cost at the right.

    Args:
        summaries: The rows of the table.
        path: The PNG file to write; SVG and PDF are written beside it.
        quality: What the scores are.

    Returns:
        The paths of the files.
    """
    table, order = by_budget(summaries), ranked(summaries)[::-1]
    found = styles(item.method for item in summaries)
    across = min(PANELS, len(table))
    down = math.ceil(len(table) / across)
    with look():
        height = 0.4 + down * (0.8 + 0.2 * len(order))
        figure = Figure(figsize=(2 + 2.6 * across, height), layout="constrained")
        panels = figure.subplots(down, across, sharey=True, sharex=True, squeeze=False).flatten()
        for axes in panels[len(table) :]:
            axes.remove()
        for number, (axes, (budget, methods)) in enumerate(zip(panels, table.items(), strict=False)):
            _references(axes, summaries, methods)
            for row, name in enumerate(order):
                if name in methods and math.isfinite(methods[name].accuracy.mean):
                    _row(axes, row, methods[name], found[name])
            axes.set_title(budget, fontsize=10)
            axes.text(1.0, 1.0, "cost", transform=axes.transAxes, ha="right", va="bottom", fontsize=8, color="0.35")
            axes.set_ylim(-0.6, len(order) - 0.4)
            axes.set_yticks(range(len(order)), order)
            axes.grid(axis="both")
            if number + across >= len(table):
                axes.set_xlabel(f"{quality}, %")
                axes.tick_params(labelbottom=True)
        low, high = panels[0].get_xlim()
        panels[0].set_xlim(low, high + 0.2 * (high - low))  # room for the costs
        footnote(
            figure,
            "Bars: 95 % intervals; grey band: the unpruned model; dotted: random.\nCost: visual tokens, mean over the"
            " decoder's layers. Order: mean distance from the budget's mean.",
        )
        return save(figure, path)


def _references(axes: Axes, summaries: Sequence[SeriesSummary], methods: Mapping[str, SeriesSummary]) -> None:
    for item in summaries:
        if item.method == UNPRUNED and math.isfinite(item.accuracy.mean):
            below, above = item.accuracy.error_bars
            mean = item.accuracy.mean
            axes.axvspan(100 * (mean - below), 100 * (mean + above), color="0.93", lw=0)
    for name in filter(is_random, methods):
        axes.axvline(100 * methods[name].accuracy.mean, color=GREY, lw=0.8, linestyle=":")


def _row(axes: Axes, row: int, item: SeriesSummary, style: MethodStyle) -> None:
    below, above = item.accuracy.error_bars
    options: dict[str, Any] = {"marker": style.marker, "markersize": marker_size(style), "elinewidth": 1}
    axes.errorbar(100 * item.accuracy.mean, row, xerr=[[100 * below], [100 * above]], color=style.colour, **options)
    place = axes.get_yaxis_transform()
    axes.text(1.0, row, f"{item.average:.1f}", transform=place, ha="right", va="center", fontsize=8, color="0.35")


def _own(summaries: Iterable[SeriesSummary]) -> set[str]:
    """The methods, without those that they are compared with."""
    return {item.method for item in summaries if item.budget and not is_reference(item.method)}


def ranked(summaries: Iterable[SeriesSummary]) -> list[str]:
    """The methods that have answers, the best first: by the mean distance from the mean of their budget's methods.

    A method that lacks a budget is neither rewarded nor punished for it.
    """
    distances: dict[str, list[float]] = defaultdict(list)
    for methods in by_budget(item for item in summaries if math.isfinite(item.accuracy.mean)).values():
        middle = statistics.fmean(item.accuracy.mean for item in methods.values())
        for name, item in methods.items():
            distances[name].append(item.accuracy.mean - middle)
    return sorted(distances, key=lambda name: (-statistics.fmean(distances[name]), name))
