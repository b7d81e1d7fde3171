"""The page of an experiment: what was run, the finding, tables, charts, and how to repeat it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokenprune.experiment.config import UNPRUNED
from tokenprune.experiment.finding import find
from tokenprune.experiment.numbers import OTHER_COST, Gain, Numbers
from tokenprune.experiment.results import Results
from tokenprune.experiment.rows import columns, format_row
from tokenprune.experiment.runner import ExperimentResult
from tokenprune.experiment.stats import Estimate
from tokenprune.experiment.summary import SeriesSummary
from tokenprune.output.folder import CONFIG
from tokenprune.report.page import (
    Cell,
    Charts,
    Column,
    Document,
    Example,
    Kind,
    Page,
    Point,
    Reference,
    Row,
    Table,
)

#: Columns of the main table that are no plain numbers.
KINDS: dict[str, Kind] = {
    "method": "text",
    "budget": "text",
    "accuracy %": "interval",
    "agreement %": "interval",
    "minus unpruned": "interval",
    "KL, nats": "interval",
}


def experiment_page(result: ExperimentResult, examples: tuple[Example, ...] = ()) -> Page:
    """The page of a finished experiment.

    Args:
        result: The experiment. Its folder's ``config.yaml`` and ``environment.json`` say what ran.
        examples: Examples to show.
    """
    return numbers_page(Numbers.of(result), examples)


def numbers_page(numbers: Numbers, examples: tuple[Example, ...] = ()) -> Page:
    """The same from numbers that are computed already."""
    results = Results(numbers.result.folder)
    text = results.read_text(CONFIG)
    config = results.config()
    versions = results.read_mapping("environment.json")
    return Page(
        title=f"Visual token pruning: model {_name(config.get('model'))}, task {_name(config.get('task'))}",
        ran=_ran(numbers, config),
        finding=find(numbers),
        notes=numbers.sentences,
        table=_main(numbers),
        charts=_charts(numbers),
        tables=tuple(table for make in (_gains, _types, _timings, _layers) if (table := make(numbers))),
        examples=examples,
        documents=(Document("Configuration (config.yaml)", text),) if text else (),
        versions=tuple((name, str(value)) for name, value in versions.items()),
        repeat=_repeat(config),
    )


def _name(component: Any) -> str:
    """What a model or task is called: what it was loaded from, else its name."""
    if not isinstance(component, Mapping):
        return "unknown"
    named = [component.get(key) for key in ("checkpoint", "data", "name")]
    return str(next((value for value in named if value), "unknown"))


def _repeat(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The commands that run the experiment again, from this folder."""
    requires = config.get("requires") or {}
    needs = [f"# needs {name}: {how}" for name, how in requires.items()] if isinstance(requires, Mapping) else []
    return (*needs, "tokenprune run config.yaml --output repeated")


def _ran(numbers: Numbers, config: Mapping[str, Any]) -> tuple[str, str]:
    answers = numbers.result.answers
    methods = dict.fromkeys(item.method for item in numbers.summaries if item.budget)
    budgets = dict.fromkeys(item.budget for item in numbers.summaries if item.budget)
    questions, pictures = len(answers.questions.groups), len(set(answers.questions.groups.values()))
    first = (
        f"{_count(len(methods), 'method')} and the unpruned model answered {_count(questions, 'question')} on"
        f" {_count(pictures, 'picture')} of `{_name(config.get('task'))}` with the model"
        f" `{_name(config.get('model'))}`, at {_count(len(budgets), 'budget')}: {', '.join(f'`{b}`' for b in budgets)}."
    )
    unpruned = next((item for item in numbers.summaries if item.method == UNPRUNED), None)
    intervals = "Intervals are 95 %, clustered by picture."
    if unpruned is None:
        return first, intervals
    reads = f"reads {unpruned.visual:.0f} visual tokens per question"
    if not numbers.result.label_free:
        reads = f"scores {unpruned.accuracy} % and {reads}"
    return first, f"The unpruned model {reads}. {intervals}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _main(numbers: Numbers) -> Table:
    """The main table; its texts are those of the Markdown table, in the same columns, without empty ones."""
    divergence = any(item.divergence is not None for item in numbers.summaries)
    titles = [Column(title, KINDS.get(title, "number")) for title in columns(numbers.result)]
    rows = [_row(item, divergence) for item in numbers.summaries]
    filled = [place for place in range(len(titles)) if any(row.cells[place].text for row in rows)]
    return Table(
        "Results",
        tuple(titles[place] for place in filled),
        tuple(replace(row, cells=tuple(row.cells[place] for place in filled)) for row in rows),
        numbers.size,
    )


def _row(item: SeriesSummary, divergence: bool) -> Row:
    values: list[float | None] = [
        None,
        None,
        item.accuracy.mean,
        item.kept,
        item.gain.mean,
        item.agreement.mean,
        *([math.nan if item.divergence is None else item.divergence.mean] if divergence else []),
        item.visual,
        item.average,
        -item.flops_reduction,
        item.kv_bytes,
        item.time_ratio,
    ]
    texts = format_row(item)
    return Row(tuple(map(Cell, texts, values)), item.method, item.budget)


def _charts(numbers: Numbers) -> Charts | None:
    points = tuple(
        Point(
            method=item.method,
            budget=item.budget,
            mean=100 * item.accuracy.mean,
            low=_end(item.accuracy, -1),
            high=_end(item.accuracy, 1),
            visual=item.visual,
            average=item.average,
            flops_reduction=item.flops_reduction,
        )
        for item in numbers.summaries
        if item.budget
    )
    references = tuple(
        Reference(
            UNPRUNED,
            100 * item.accuracy.mean,
            _end(item.accuracy, -1),
            _end(item.accuracy, 1),
            item.visual,
        )
        for item in numbers.summaries
        if item.method == UNPRUNED and not numbers.result.label_free
    )
    quantity = "agreement, %" if numbers.result.label_free else "accuracy, %"
    return Charts(quantity, points, references=references) if points else None


def _end(estimate: Estimate, side: int) -> float:
    """An end of an interval in percent, within the range of scores."""
    below, above = estimate.error_bars
    return 100 * (estimate.mean - below if side < 0 else estimate.mean + above)


def _gains(numbers: Numbers) -> Table | None:
    gains = numbers.gains
    if gains is None:
        return None
    rows = tuple(
        Row(
            (
                Cell(method),
                *(map(_gain_cell, row)),
                Cell(", ".join(dict.fromkeys(gain.rival for gain in row if gain is not None))),
            ),
            method,
        )
        for method, row in gains.methods.items()
    )
    columns = (Column("method"), *(Column(budget, "interval") for budget in gains.budgets), Column("compared with"))
    note = (
        "Points above random pruning on the same questions; **bold where random wins** beyond the interval. Compared is"
        " the random choice whose layer average is the nearest."
    )
    return Table("Gains over random", columns, rows, f"{note} {OTHER_COST}" if gains.other_cost else note)


def _gain_cell(gain: Gain | None) -> Cell:
    return Cell("", math.nan) if gain is None else Cell(str(gain), gain.estimate.mean, gain.random_wins)


def _method_row(item: SeriesSummary, cells: Sequence[Cell]) -> Row:
    """A row about a method with a budget, which are its first two cells."""
    return Row((Cell(item.method), Cell(item.budget), *cells), item.method, item.budget)


def _types(numbers: Numbers) -> Table | None:
    if not numbers.types:
        return None
    rows = tuple(
        _method_row(item, [Cell("" if math.isnan(value) else f"{100 * value:.1f}", value) for value in values])
        for item, values in zip(numbers.summaries, numbers.per_type, strict=True)
    )
    columns = (Column("method"), Column("budget"), *(Column(kind, "number") for kind in numbers.types))
    return Table("Accuracy per question type, %", columns, rows)


def _timings(numbers: Numbers) -> Table | None:
    timed = [item for item in numbers.summaries if item.budget and not math.isnan(item.time_ratio)]
    if not timed:
        return None
    rows = tuple(
        _method_row(item, [Cell(f"{value:.2f}", value) for value in (item.time_ratio, *item.time_spread)])
        for item in timed
    )
    columns = (Column("method"), Column("budget"), *(Column(name, "number") for name in ("median", "least", "most")))
    rounds = max(map(len, numbers.result.timing.values()))
    note = (
        f"Prefill time divided by that of the unpruned model, measured in turns on one batch, {_count(rounds, 'round')}"
        " per series."
    )
    return Table("Timings", columns, rows, note)


def _layers(numbers: Numbers) -> Table | None:
    rows = tuple(
        Row((Cell(", ".join(item.methods)), Cell(", ".join(map(str, item.layers))), Cell(item.reason)))
        for item in numbers.layers
    )
    columns = (Column("methods"), Column("before layer"), Column("why"))
    return Table("Layers", columns, rows) if rows else None
