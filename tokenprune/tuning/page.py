"""The page of a tune: the best candidates of each budget, their losses with intervals, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenprune.engine.trials.race import Goal
from tokenprune.report.page import (
    Cell,
    Charts,
    Column,
    Document,
    Finding,
    Kind,
    Page,
    Point,
    Row,
    Table,
)
from tokenprune.tuning import table
from tokenprune.tuning.intervals import Interval
from tokenprune.tuning.ranking import Ranked, Ranking, pareto_front
from tokenprune.tuning.report import Facts
from tokenprune.tuning.words import LOSSES, copies_sentence, method_of, quality, sentence
from tokenprune.version import __version__

#: Candidates that the charts show of each budget, beside the best random one.
SHOWN = 15
#: Losses that differ by more than this factor are drawn on a logarithmic axis.
WIDE = 20.0
#: Columns of the table that are no plain numbers.
KINDS: dict[str, Kind] = {
    "candidate": "text",
    "before layer": "text",
    "loss": "number",
    "95 % interval": "text",
    "minus the best": "interval",
    "samples": "text",
}


def tune_page(
    rankings: Sequence[Ranking], facts: Facts, skipped: Mapping[str, str], folder: Path | None = None
) -> Page:
    """The page of a finished tune.

    Args:
        rankings: The ranking of each budget.
        facts: What was tuned, and on what.
        skipped: Id of every sample that could not be used -> why.
        folder: Folder of the tune; its ``config.yaml`` says what ran. None for none.
    """
    config = "" if folder is None else _read(folder / "config.yaml")
    return Page(
        title=f"Methods for {facts.model}",
        ran=_ran(rankings, facts),
        finding=_finding(rankings, facts.goal),
        table=_main(rankings, facts.goal),
        notes=(
            *copies_sentence(rankings[0].samples, facts.copies),
            *(f"The sample `{name}` could not be used: {why}." for name, why in skipped.items()),
        ),
        charts=_charts(rankings, facts.goal),
        tables=(_front(rankings, facts.goal), *_refused(rankings)),
        documents=(Document("Configuration (config.yaml)", config),) if config else (),
        versions=(("tokenprune", __version__),),
        stands_for=tuple(
            dict.fromkeys((row.name, method_of(row), 0) for ranking in rankings for row in ranking.ranked)
        ),
        repeat=("tokenprune tune config.yaml --output repeated",) if config else (),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _ran(rankings: Sequence[Ranking], facts: Facts) -> tuple[str, str]:
    name, _, unit = LOSSES[facts.goal]
    candidates = sum(len(ranking.ranked) for ranking in rankings)
    budgets = ", ".join(f"`{ranking.budget}`" for ranking in rankings)
    answer = "first answer token" if facts.tokens == 1 else f"first {facts.tokens} answer tokens"
    how = "scored by the task" if facts.goal == "score" else f"compared on the {answer}, without labels"
    subtracted = "100 % minus the " if facts.goal in ("agreement", "score") else "the "
    return (
        f"{candidates} candidates raced on {rankings[0].samples} samples of `{facts.data}` at {budgets}, {how}; those"
        f" that were clearly worse left early, and the best one is dropped with a probability of at most about"
        f" {facts.error:g}.",
        f"The loss is {subtracted}{name}, in {unit}, less is better; intervals are 95 %, by bootstrap over the samples,"
        " and differences are paired by sample.",
    )


def _finding(rankings: Sequence[Ranking], goal: Goal) -> Finding:
    """The sentence of the only budget, or of the first at which random is beaten, and how many those are."""
    beaten = [ranking for ranking in rankings if ranking.beats_random]
    top = (beaten or list(rankings))[0]
    text = sentence(top, goal)
    name = top.best.name
    text = f"The best is `{name}`{text[len(name) :]}" if text.startswith(name) else text[:1].upper() + text[1:]
    if len(rankings) > 1:
        text = (
            f"`{top.budget}`: {text} Random is beaten beyond the noise with {len(beaten)} of {len(rankings)} budgets."
        )
    return Finding(text, "better" if beaten else "worse" if top.best.random else "open")


def _main(rankings: Sequence[Ranking], goal: Goal) -> Table:
    """All candidates of all budgets; texts and columns are those of the Markdown tables, and the budget."""
    titles = (table.COLUMNS[0], "budget", *table.COLUMNS[1:])
    kinds: dict[str, Kind] = {**KINDS, "budget": "text"}
    columns = tuple(Column(title, kinds.get(title, "number")) for title in titles)
    rows = tuple(_row(row, goal) for ranking in rankings for row in ranking.ranked)
    return Table("Ranking", columns, rows, "The best first. Intervals are 95 %, by bootstrap over the samples.")


def _row(row: Ranked, goal: Goal) -> Row:
    name, *rest = table.cells(row, goal)
    values = [
        None,
        row.loss.mean,
        None,
        row.difference.mean,
        row.agreement.mean,
        row.divergence.mean,
        None,
        row.average,
        row.flops - 1,
    ]
    cells = (Cell(name), Cell(row.budget), *(Cell(text, value) for text, value in zip(rest, values, strict=True)))
    return Row(cells, row.name, row.budget)


def shown(ranking: Ranking) -> list[Ranked]:
    """The first candidates of a ranking, and the best random one below them."""
    first = list(ranking.ranked[:SHOWN])
    chance = ranking.random
    return first if chance is None or chance in first else [*first, chance]


def _charts(rankings: Sequence[Ranking], goal: Goal) -> Charts:
    _, factor, unit = LOSSES[goal]
    rows = [row for ranking in rankings for row in shown(ranking)]
    means = [factor * row.loss.mean for row in rows]
    log = min(means) > 0 and max(means) > WIDE * min(means)
    points = {id(row): _point(row, factor) for row in rows}
    front = pareto_front([row for ranking in rankings for row in ranking.ranked])
    return Charts(
        quantity=f"loss, {unit}",
        points=tuple(points.values()),
        kinds=("ranking", "average"),
        front=tuple(points[id(row)] for row in front if id(row) in points),
        log=log,
        bounds=(0.0, 100.0 if goal in ("agreement", "score") else None),
    )


def _point(row: Ranked, factor: float) -> Point:
    low, high = _ends(row.loss)
    return Point(
        method=row.name,
        budget=row.budget,
        mean=factor * row.loss.mean,
        low=factor * low,
        high=factor * high,
        average=row.average,
        flops_reduction=1 - row.flops,
    )


def _ends(loss: Interval) -> tuple[float, float]:
    return max(loss.low, 0.0), loss.high


def _front(rankings: Sequence[Ranking], goal: Goal) -> Table:
    """The Pareto front of cost against loss."""
    factor = LOSSES[goal][1]
    front = pareto_front([row for ranking in rankings for row in ranking.ranked])
    columns = (
        Column("candidate"),
        Column("budget"),
        Column("layer average", "number"),
        Column("loss", "number"),
        Column("quality"),
    )
    rows = tuple(
        Row(
            (
                Cell(row.name),
                Cell(row.budget),
                Cell(f"{row.average:.1f}", row.average),
                Cell(f"{factor * row.loss.mean:.4g}", row.loss.mean),
                Cell(quality(row)),
            ),
            row.name,
            row.budget,
        )
        for row in front
    )
    return Table("Cost against fidelity", columns, rows, "No other candidate is both cheaper and closer.")


def _refused(rankings: Sequence[Ranking]) -> tuple[Table, ...]:
    rows = tuple(
        Row((Cell(name), Cell(ranking.budget), Cell(why)), budget=ranking.budget)
        for ranking in rankings
        for name, why in ranking.refused.items()
    )
    columns = (Column("candidate"), Column("budget"), Column("why"))
    return (Table("Candidates that cannot run", columns, rows),) if rows else ()
