"""The tables of a tune, as columns; every report, file and terminal shows these."""

from collections.abc import Callable, Sequence

from tokenprune.budgets.label import in_words
from tokenprune.engine.trials.race import Goal
from tokenprune.tables.column import Column, estimate, fill, number, text
from tokenprune.tables.table import Cell, Heading, Table
from tokenprune.tuning.ranking import Ranked, Ranking, pareto_front
from tokenprune.tuning.sentences import LOSSES, decimals, quality

CANDIDATE: Column[Ranked] = text("candidate", lambda row: row.name)
BUDGET: Column[Ranked] = text("budget", lambda row: in_words(row.budget))
AVERAGE: Column[Ranked] = number("layer average", lambda row: row.average)


def _samples(row: Ranked) -> Cell:
    return Cell(str(row.seen), row.seen) if row.left is None else Cell(f"left after {row.left}", row.left)


def columns(goal: Goal, is_best: Callable[[Ranked], bool]) -> tuple[Column[Ranked], ...]:
    """The columns of a ranking.

    Args:
        goal: What the tune makes small; the loss and its differences are in its unit.
        is_best: Whether a candidate is the best of its budget: its name is bold, and it has no difference.
    """
    factor, most = LOSSES[goal][1], decimals(goal)
    return (
        CANDIDATE.bold(is_best),
        text("before layer", lambda row: ", ".join(map(str, getattr(row.method.layers, "layers", ())))).ranked(3),
        estimate("loss", lambda row: row.loss, factor, most),
        estimate("minus the best", lambda row: row.difference, factor, most, signed=True).hidden(is_best),
        number("agreement %", lambda row: 100 * row.agreement.mean).ranked(2),
        number("KL, nats", lambda row: row.divergence.mean, "{:.4f}").ranked(6),
        Column("samples", _samples, "number", rank=5),
        AVERAGE.ranked(4),
        number("FLOPs", lambda row: 100 * (row.flops - 1), "{:.1f} %", unknown="unknown").ranked(1),
    )


def ranking_table(rankings: Sequence[Ranking], goal: Goal) -> Table:
    """All candidates, the best first; of several budgets with a column that names them."""
    best = {id(ranking.best) for ranking in rankings}
    first, *others = columns(goal, lambda row: id(row) in best)
    budget = [BUDGET] if len(rankings) > 1 else []
    rows = [row for ranking in rankings for row in ranking.ranked]
    note = "The best first. Intervals are 95 %."
    return fill("Ranking", (first, *budget, *others), rows, note, _about)


def further_tables(rankings: Sequence[Ranking], goal: Goal) -> list[Table]:
    """The Pareto front of cost against loss, and the candidates that cannot run."""
    front = pareto_front([row for ranking in rankings for row in ranking.ranked])
    loss: Column[Ranked] = estimate("loss", lambda row: row.loss, LOSSES[goal][1], decimals(goal))
    note = "No other candidate is both cheaper and closer."
    tables = [
        fill("Cost against fidelity", (CANDIDATE, BUDGET, AVERAGE, loss, text("quality", quality)), front, note, _about)
    ]
    refused = [(name, in_words(ranking.budget), why) for ranking in rankings for name, why in ranking.refused.items()]
    if refused:
        headings = [Heading("candidate"), Heading("budget"), Heading("why")]
        tables.append(Table.of_texts("Candidates that cannot run", headings, refused))
    return tables


def _about(row: Ranked) -> tuple[str, str]:
    return row.name, row.budget
