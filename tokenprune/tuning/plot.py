"""The charts of a tune: the best candidates of each budget with intervals, and their losses against their costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenprune.drawing import ranking as chart
from tokenprune.drawing.against import AVERAGE
from tokenprune.drawing.palette import StyleAlias, styles
from tokenprune.drawing.points import Charts, Point
from tokenprune.drawing.vega import save
from tokenprune.engine.trials.race import Goal
from tokenprune.tuning.ranking import Ranked, Ranking, pareto_front
from tokenprune.tuning.sentences import LOSSES, method_of

#: Candidates that the charts show of each budget, beside the best random one.
SHOWN = 15
#: Losses that differ by more than this factor are drawn on a logarithmic axis.
WIDE = 20.0


def charts_of(rankings: Sequence[Ranking], goal: Goal) -> Charts:
    """Make charts of the best candidates; the best of each budget has a band.

    Args:
        rankings: The rankings.
        goal: What the tune makes small.
    """
    _, factor, unit = LOSSES[goal]
    points = {id(row): _point(row, factor) for ranking in rankings for row in shown(ranking)}
    means = [point.mean for point in points.values()]
    front = pareto_front([row for ranking in rankings for row in ranking.ranked])
    return Charts(
        quantity=f"loss, {unit}",
        points=tuple(points.values()),
        kinds=(chart.Ranking(), AVERAGE),
        references=tuple(points[id(ranking.best)] for ranking in rankings),
        front=tuple(points[id(row)] for row in front if id(row) in points),
        log=min(means) > 0 and max(means) > WIDE * min(means),
        bounds=(0.0, 100.0 if goal in ("agreement", "score") else None),
    )


def _point(row: Ranked, factor: float) -> Point:
    return Point(
        method=row.name,
        budget=row.budget,
        mean=factor * row.loss.mean,
        low=factor * max(row.loss.low, 0.0),
        high=factor * row.loss.high,
        average=row.average,
        flops_reduction=1 - row.flops,
        role="random" if row.random else "method",
        hollow=row.left is not None,
        strong=row.tied,
    )


def aliases(rankings: Sequence[Ranking]) -> tuple[StyleAlias, ...]:
    """The candidates' styles: a variant has that of its method."""
    return tuple(dict.fromkeys(StyleAlias(row.name, method_of(row)) for ranking in rankings for row in ranking.ranked))


def tune_plot(rankings: Sequence[Ranking], goal: Goal, path: Path) -> list[Path]:
    """Draw the losses of the best candidates with their intervals, a panel per budget, the best on top.

    Args:
        rankings: The rankings.
        goal: What the tune makes small.
        path: The PNG file to write; SVG and PDF are written beside it.

    Returns:
        The paths of the files.
    """
<<<<<<< HEAD
    charts = charts_of(rankings, goal)
    titles = {ranking.budget: f"{ranking.budget}, {ranking.samples} samples" for ranking in rankings}
    loss = f"{'100 % minus the ' if goal in ('agreement', 'score') else ''}{LOSSES[goal][0]}"
    notes = [
        f"Loss: {loss}; less is better. Bars: 95 % intervals; band: that of the best; dotted: random.",
        "Hollow: left the race early. Bold: within the noise of the best. Cost: visual tokens, mean over the decoder's"
        " layers.",
    ]
    style = styles(charts.methods, aliases(rankings))
    return save(chart.Ranking().figure(charts, style, notes, columns=1, titles=titles), path)
=======
    name, factor, unit = LOSSES[goal]
    panels = [shown(ranking) for ranking in rankings]
    found = styles(method_of(row) for rows in panels for row in rows)
    height = 1.3 + 0.24 * sum(map(len, panels)) + 0.7 * len(panels)
    with look():
        figure = Figure(figsize=(9, height), layout="constrained")
        ratios = [len(rows) + 1 for rows in panels]
        axes_per_panel = figure.subplots(len(panels), 1, squeeze=False, height_ratios=ratios)[:, 0]
        for axes, ranking, rows in zip(axes_per_panel, rankings, panels, strict=True):
            _panel(axes, ranking, rows, factor, found)
        subtracted = "100 % minus the " if goal in ("agreement", "score") else ""
        axes_per_panel[-1].set_xlabel(f"{subtracted}{name}, {unit} (less is better)")
        footnote(
            figure,
            "Bars: 95 % intervals; band: that of the best. Hollow: left the race early. Bold: within the noise of the"
            " best.\nCost: visual tokens, mean over the decoder's layers.",
        )
        return save(figure, path)


def _panel(axes: Axes, ranking: Ranking, rows: Sequence[Ranked], factor: float, found: dict[str, MethodStyle]) -> None:
    means = [factor * row.loss.mean for row in rows]
    logarithmic = min(means) > 0 and max(means) > WIDE * min(means)
    if logarithmic:
        axes.set_xscale("log")
    left = min(means) / 10 if logarithmic else 0.0  # an interval may reach zero
    best = rows[0].loss
    low, high = best.drawn
    axes.axvspan(max(factor * low, left), factor * high, color="0.93", lw=0)
    for place, row in enumerate(rows):
        style, mean = found[method_of(row)], factor * row.loss.mean
        low, high = row.loss.drawn
        below, above = mean - max(factor * low, left), factor * high - mean
        axes.errorbar(
            mean,
            place,
            xerr=[[max(below, 0.0)], [max(above, 0.0)]],
            color=style.colour,
            marker=style.marker,
            markerfacecolor=style.colour if row.left is None else "white",
            markersize=marker_size(style),
            elinewidth=1,
        )
        right = axes.get_yaxis_transform()
        axes.text(
            1.055, place, f"{row.average:.1f}", transform=right, ha="right", va="center", fontsize=8, color="0.35"
        )
    axes.text(1.055, 1.0, "cost", transform=axes.transAxes, ha="right", va="bottom", fontsize=8, color="0.35")
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    for row, label in zip(rows, axes.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if row.tied else "normal")
        label.set_color(GREY if row.random else "0.15")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=left)
    axes.set_title(f"{ranking.budget}, {ranking.samples} samples", fontsize=10)
    axes.grid(axis="both")
>>>>>>> 88c1ad2 (dT)


def shown(ranking: Ranking) -> list[Ranked]:
    """The first candidates of a ranking, and the best random one below them."""
    first = list(ranking.ranked[:SHOWN])
    chance = ranking.random
    return first if chance is None or chance in first else [*first, chance]
