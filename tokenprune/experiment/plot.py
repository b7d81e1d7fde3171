"""The charts of an experiment: accuracy against cost and against visual tokens kept, and budget by budget."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tokenprune.drawing.against import COSTS, Against
from tokenprune.drawing.palette import styles
from tokenprune.drawing.points import Charts, Point, Reference
from tokenprune.drawing.ranking import Ranking, bold
from tokenprune.drawing.vega import figure, save
from tokenprune.experiment.config import UNPRUNED
from tokenprune.experiment.method_name import is_random
from tokenprune.experiment.stats import Estimate
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
    points = [
        Point(
            method=item.method,
            budget=item.budget,
            mean=100 * item.accuracy.mean,
            low=_end(item.accuracy, -1),
            high=_end(item.accuracy, 1),
            visual=item.visual,
            average=item.average,
            flops_reduction=item.flops_reduction,
            role="random" if is_random(item.method) else "bound" if item.method == "oracle" else "method",
        )
        for item in summaries
        if item.budget
    ]
    references = [
        Reference(UNPRUNED, 100 * item.accuracy.mean, _end(item.accuracy, -1), _end(item.accuracy, 1), item.visual)
        for item in summaries
        if item.method == UNPRUNED and math.isfinite(item.accuracy.mean) and not label_free
    ]
    return Charts("agreement, %" if label_free else "accuracy, %", tuple(points), COSTS, tuple(references))


def _end(estimate: Estimate, side: int) -> float:
    """An end of an interval in percent, within the range of scores."""
    below, above = estimate.error_bars
    return 100 * (estimate.mean - below if side < 0 else estimate.mean + above)


def accuracy_plot(charts: Charts, path: Path) -> list[Path]:
    """Draw accuracy against the layer average, beside accuracy against visual tokens kept, with 95 % intervals.

    Of more than :data:`MOST_LINES` methods only the best have colours, and a second figure (``-by-budget`` in its name)
    shows all of them: a panel per budget, a row per method.

    Args:
        charts: The points.
        path: The PNG file to write; SVG and PDF are written beside it.

    Returns:
        The paths of the files.
    """
    written = comparison_plot({"": charts}, path)
    if _faint(charts):
        written += by_budget_plot(charts, path.with_name(f"{path.stem}-by-budget.png"))
    return written


def comparison_plot(results: Mapping[str, Charts], path: Path) -> list[Path]:
    """Draw several results below each other on the same axes.

    Args:
        results: The points of each result by its name.
        path: The PNG file to write; SVG and PDF are written beside it.

    Returns:
        The paths of the files.
    """
    names = dict.fromkeys(name for charts in results.values() for name in charts.methods)
    style = styles(names)
    rows, notes = [], []
    for name, charts in results.items():
        faint, shared = _faint(charts), replace(charts, beside=tuple(results.values()))
        panels = [_cost("average").panel(shared, style, faint), _cost("visual").panel(shared, style, faint, named=True)]
        title = {"text": name, "anchor": "start", "fontSize": 13} if name else None
        rows.append({"hconcat": panels, "title": title, "spacing": 20})
        notes += [f"Light grey{f' of {name}' if name else ''}, the best first: {', '.join(faint)}."] if faint else []
    whole = [
        f"{item.visual:.0f} tokens{f' in {name}' if name else ''}"
        for name, charts in results.items()
        for item in charts.references
    ]
    band = f" grey line and band: the unpruned model ({', '.join(whole)});" if whole else ""
    notes = [f"Bars: 95 % intervals;{band} points of equal cost stand side by side.", *notes]
    return save(figure({"vconcat": rows}, _wrapped(notes), list(names)), path)


def by_budget_plot(charts: Charts, path: Path) -> list[Path]:
    """Draw a panel per budget and a row per method, the best on average on top, with its cost at the right.

    Args:
        charts: The points.
        path: The PNG file to write; SVG and PDF are written beside it.

    Returns:
        The paths of the files.
    """
    order, style = charts.ranked(), styles(charts.methods)
    panels = [
        Ranking().panel(charts, style, budget, order, axis={"labels": number % PANELS == 0}, width=200)
        for number, budget in enumerate(charts.budgets)
    ]
    notes = [
        "Bars: 95 % intervals; grey band: the unpruned model; dotted: random.",
        "Cost: visual tokens, mean over the decoder's layers. Order: mean distance from the budget's mean.",
    ]
    spec = {"concat": panels, "columns": PANELS, "spacing": {"row": 20, "column": 12}}
    return save(figure(spec, notes, charts.methods, **bold(charts)), path)


def _cost(name: str) -> Against:
    return next(cost for cost in COSTS if cost.id == name)


def _faint(charts: Charts) -> list[str]:
    """Methods that are drawn faintly, the best first."""
    compared = {point.method for point in charts.points if point.role != "method"}
    own = [name for name in charts.ranked() if name not in compared]
    return own[BEST:] if len(own) > MOST_LINES else []


def _wrapped(texts: Sequence[str]) -> list[str]:
    """Lines of at most :data:`LETTERS` letters; names with hyphens stay whole."""
    return [
        line for text in texts for line in textwrap.wrap(text, LETTERS, break_long_words=False, break_on_hyphens=False)
    ]
