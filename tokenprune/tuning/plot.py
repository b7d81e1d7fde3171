"""The charts of a tune: the best candidates of each budget with intervals, and their losses against their costs."""

from collections.abc import Sequence
from pathlib import Path

from tokenprune.budgets.label import in_words
from tokenprune.drawing import ranking as chart
from tokenprune.drawing.against import AVERAGE
from tokenprune.drawing.palette import StyleAlias, styles
from tokenprune.drawing.points import Charts, Point
from tokenprune.drawing.vega import Json, save
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
    low, high = row.loss.drawn
    return Point(
        method=row.name,
        budget=in_words(row.budget),
        mean=factor * row.loss.mean,
        low=factor * max(low, 0.0),
        high=factor * high,
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
    """Draw a tune into files.

    Args:
        rankings: The rankings.
        goal: What the tune makes small.
        path: The PNG file to write; SVG and PDF are written beside it.

    Returns:
        The paths of the files.
    """
    return save(tune_figure(rankings, goal), path)


def tune_figure(rankings: Sequence[Ranking], goal: Goal) -> Json:
    """Draw the losses of the best candidates with their intervals, a panel per budget, the best on top.

    Args:
        rankings: The rankings.
        goal: What the tune makes small.
    """
    charts = charts_of(rankings, goal)
    titles = {
        words: f"{words}, {ranking.samples} samples" for ranking in rankings for words in [in_words(ranking.budget)]
    }
    loss = f"{'100 % minus the ' if goal in ('agreement', 'score') else ''}{LOSSES[goal][0]}"
    notes = [
        f"Loss: {loss}; less is better. Bars: 95 % intervals; band: that of the best; dotted: random.",
        "Hollow: left the race early. Bold: within the noise of the best. Cost: visual tokens, mean over the decoder's"
        " layers.",
    ]
    style = styles(charts.methods, aliases(rankings))
    return chart.Ranking().figure(charts, style, notes, columns=1, titles=titles)


def shown(ranking: Ranking) -> list[Ranked]:
    """The first candidates of a ranking, and the best random one below them."""
    first = list(ranking.ranked[:SHOWN])
    chance = ranking.random
    return first if chance is None or chance in first else [*first, chance]
