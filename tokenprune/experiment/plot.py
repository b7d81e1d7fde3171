"""The charts of an experiment: accuracy against cost and against visual tokens kept, and budget by budget."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tokenprune.budgets.label import in_words
from tokenprune.core.references import DOWNSAMPLED, ORACLE, UNPRUNED, is_random
from tokenprune.drawing.against import AVERAGE, COSTS, VISUAL, WIDTH
from tokenprune.drawing.palette import styles
from tokenprune.drawing.points import Charts, Point, Role
from tokenprune.drawing.ranking import Ranking
from tokenprune.drawing.vega import Json, figure, save
from tokenprune.experiment.summary import SeriesSummary

#: Methods, without those that they are compared with, that get a line of their own each.
MOST_LINES = 10
#: The best of more methods than that, which are still drawn in colour.
BEST = 7
#: Panels side by side of the figure by budget.
PANELS = 4
#: Letters of a line of small text below the panels.
LETTERS = 170


def charts_of(summaries: Sequence[SeriesSummary], label_free: bool = False) -> Charts:
    """Make charts of the rows of a table.

    Args:
        summaries: The rows.
        label_free: Whether the scores are agreements with the unpruned model, which then has no band.
    """
    known = [item for item in summaries if item.method == UNPRUNED and math.isfinite(item.accuracy.mean)]
    points, bands = (tuple(map(_point, items)) for items in ([item for item in summaries if item.budget], known))
    return Charts("agreement, %", points, COSTS) if label_free else Charts("accuracy, %", points, COSTS, bands)


def _point(item: SeriesSummary) -> Point:
    """A row of the table in percent."""
    low, high = item.accuracy.drawn
    return Point(
        method=item.method,
        budget=in_words(item.budget),
        mean=100 * item.accuracy.mean,
        low=100 * low,
        high=100 * high,
        visual=item.visual,
        average=item.average,
        flops_reduction=item.flops_reduction,
        role=_role(item.method),
    )


def _role(method: str) -> Role:
    if is_random(method):
        return "random"
    others: dict[str, Role] = {ORACLE: "bound", DOWNSAMPLED: "smaller"}
    return others.get(method, "method")


def accuracy_plot(charts: Charts, path: Path) -> list[Path]:
    """Draw accuracy against the layer average, beside accuracy against visual tokens kept, with 95 % intervals.

    Of more than :data:`MOST_LINES` methods only the best have colours, and a second figure (``-by-budget`` in its name)
    shows all of them: a panel per budget, a row per method, the best on average on top, with its cost at the right.

    Args:
        charts: The points.
        path: The PNG file to write; SVG and PDF are written beside it.

    Returns:
        The paths of the files.
    """
    written = comparison_plot({"": charts}, path)
    if not _faint(charts):
        return written
    notes = [
        "Bars: 95 % intervals; grey band: the unpruned model; dotted: random.",
        "Cost: visual tokens, mean over the decoder's layers. Order: mean distance from the budget's mean.",
    ]
    by_budget = Ranking().figure(charts, styles(charts.methods), notes, PANELS, charts.ranked())
    return written + save(by_budget, path.with_name(f"{path.stem}-by-budget.png"))


def comparison_plot(results: Mapping[str, Charts], path: Path) -> list[Path]:
    """Draw several results into files.

    Args:
        results: See :func:`comparison_figure`.
        path: The PNG file to write; SVG and PDF are written beside it.

    Returns:
        The paths of the files.
    """
    return save(comparison_figure(results), path)


def comparison_figure(results: Mapping[str, Charts]) -> Json:
    """Draw several results below each other on the same axes.

    Args:
        results: The points of each result by its name.
    """
    names = list(dict.fromkeys(name for charts in results.values() for name in charts.methods))
    style, shared = styles(names), tuple(results.values())
    rows: list[Json] = []
    whole: list[str] = []
    light: list[str] = []
    for name, charts in results.items():
        faint, drawn = _faint(charts), replace(charts, beside=shared)
        panels = [cost.panel(drawn, style, WIDTH, faint, named=cost is VISUAL) for cost in (AVERAGE, VISUAL)]
        rows.append({"hconcat": panels, "spacing": 20, "title": {"text": name, "anchor": "start"} if name else None})
        whole += [f"{band.visual:.0f} tokens{f' in {name}' if name else ''}" for band in charts.references]
        light += [f"Light grey{f' of {name}' if name else ''}, the best first: {', '.join(faint)}."] if faint else []
    band = f" grey line and band: the unpruned model ({', '.join(whole)});" if whole else ""
    notes = [f"Bars: 95 % intervals;{band} a fan of lines leads from a cost to the points that have it.", *light]
    lines = [
        line
        for note in notes  # names with hyphens stay whole
        for line in textwrap.wrap(note, LETTERS, break_long_words=False, break_on_hyphens=False)
    ]
    return figure({"vconcat": rows}, lines, names)


def _faint(charts: Charts) -> list[str]:
    """Methods that are drawn faintly, the best first."""
    compared = {point.method for point in charts.points if point.role != "method"}
    own = [name for name in charts.ranked() if name not in compared]
    return own[BEST:] if len(own) > MOST_LINES else []
