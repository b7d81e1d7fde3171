"""The charts of a tune: the best candidates of each budget with intervals, and their losses against their costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenprune.drawing.against import COSTS
from tokenprune.drawing.palette import StyleAlias, styles
from tokenprune.drawing.points import Charts, Point, Reference
from tokenprune.drawing.ranking import Ranking as RankingChart
from tokenprune.drawing.ranking import bold
from tokenprune.drawing.vega import figure, save
from tokenprune.engine.race import Goal
from tokenprune.tuning.ranking import Ranked, Ranking, pareto_front
from tokenprune.tuning.words import LOSSES, method_of

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
    rows = [row for ranking in rankings for row in shown(ranking)]
    means = [factor * row.loss.mean for row in rows]
    points = {id(row): _point(row, factor) for row in rows}
    front = pareto_front([row for ranking in rankings for row in ranking.ranked])
    best = [points[id(ranking.best)] for ranking in rankings]
    return Charts(
        quantity=f"loss, {unit}",
        points=tuple(points.values()),
        kinds=(RankingChart(), *(cost for cost in COSTS if cost.id == "average")),
        references=tuple(Reference(item.method, item.mean, item.low, item.high, budget=item.budget) for item in best),
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
    charts = charts_of(rankings, goal)
    style = styles(charts.methods, aliases(rankings))
    panels = []
    for ranking in rankings:
        order = [row.name for row in shown(ranking)]
        panel = RankingChart().panel(charts, style, ranking.budget, order, axis={"labelLimit": 300}, width=520)
        panels.append({**panel, "title": {**panel["title"], "text": f"{ranking.budget}, {ranking.samples} samples"}})
    subtracted = "100 % minus the " if goal in ("agreement", "score") else ""
    notes = [
        f"Loss: {subtracted}{LOSSES[goal][0]}; less is better. Bars: 95 % intervals; band: that of the best; dotted:"
        " random.",
        "Hollow: left the race early. Bold: within the noise of the best. Cost: visual tokens, mean over the decoder's"
        " layers.",
    ]
    return save(figure({"vconcat": panels}, notes, charts.methods, **bold(charts)), path)


def shown(ranking: Ranking) -> list[Ranked]:
    """The first candidates of a ranking, and the best random one below them."""
    first = list(ranking.ranked[:SHOWN])
    chance = ranking.random
    return first if chance is None or chance in first else [*first, chance]
