"""The page of an experiment: the run, the finding, tables, charts, and how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from tokenprune.core.references import UNPRUNED
from tokenprune.experiment.finding import find
from tokenprune.experiment.report_data import ReportData
from tokenprune.experiment.results import Results
from tokenprune.experiment.runner import ExperimentResult
from tokenprune.experiment.tables import further_tables, main_table
from tokenprune.report.page import Charts, Document, Example, Page, Point, Reference
from tokenprune.stats.estimate import Estimate


def experiment_page(result: ExperimentResult, examples: tuple[Example, ...] = ()) -> Page:
    """The page of a finished experiment.

    Args:
        result: The experiment. Its folder's ``config.yaml`` and ``environment.json`` say what ran.
        examples: Examples to show.
    """
    return page_of(ReportData.of(result), examples)


def page_of(data: ReportData, examples: tuple[Example, ...] = ()) -> Page:
    """The page from data that are computed already."""
    results = Results(data.result.folder)
    text = _read(results, "config.yaml")
    config = _settings(text)
    environment = results.read_json("environment.json")
    versions = environment if isinstance(environment, dict) else {}
    return Page(
        title=f"Visual token pruning: model {_name(config.get('model'))}, task {_name(config.get('task'))}",
        ran=_ran(data, config),
        finding=find(data),
        notes=data.sentences,
        table=main_table(data.summaries, data.size),
        charts=_charts(data),
        tables=tuple(further_tables(data)),
        examples=examples,
        documents=(Document("Configuration (config.yaml)", text),) if text else (),
        versions=tuple((name, str(value)) for name, value in versions.items()),
        repeat=_repeat(config),
    )


def _read(results: Results, name: str) -> str:
    try:
        return (results.folder / name).read_text(encoding="utf-8")
    except OSError:
        return ""


def _settings(text: str) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _name(component: Any) -> str:
    """The name of a model or task: the file that it was loaded from, else its own."""
    if not isinstance(component, Mapping):
        return "unknown"
    named = [component.get(key) for key in ("checkpoint", "data", "name")]
    return str(next((value for value in named if value), "unknown"))


def _repeat(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The commands that run the experiment again, from this folder."""
    requires = config.get("requires") or {}
    needs = [f"# needs {name}: {how}" for name, how in requires.items()] if isinstance(requires, Mapping) else []
    return (*needs, "tokenprune run config.yaml --output repeated")


def _ran(data: ReportData, config: Mapping[str, Any]) -> tuple[str, str]:
    answers = data.result.answers
    methods = dict.fromkeys(item.method for item in data.summaries if item.budget)
    budgets = dict.fromkeys(item.budget for item in data.summaries if item.budget)
    questions, pictures = len(answers.questions.groups), len(set(answers.questions.groups.values()))
    first = (
        f"{_count(len(methods), 'method')} and the unpruned model answered {_count(questions, 'question')} on"
        f" {_count(pictures, 'picture')} of `{_name(config.get('task'))}` with the model"
        f" `{_name(config.get('model'))}`, at {_count(len(budgets), 'budget')}: {', '.join(f'`{b}`' for b in budgets)}."
    )
    unpruned = next((item for item in data.summaries if item.method == UNPRUNED), None)
    intervals = "Intervals are 95 %, clustered by picture."
    if unpruned is None:
        return first, intervals
    reads = f"reads {unpruned.visual:.0f} visual tokens per question"
    if not data.result.label_free:
        reads = f"scores {unpruned.accuracy} % and {reads}"
    return first, f"The unpruned model {reads}. {intervals}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _charts(data: ReportData) -> Charts | None:
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
        for item in data.summaries
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
        for item in data.summaries
        if item.method == UNPRUNED and not data.result.label_free
    )
    quantity = "agreement, %" if data.result.label_free else "accuracy, %"
    return Charts(quantity, points, references=references) if points else None


def _end(estimate: Estimate, side: int) -> float:
    """An end of an interval in percent, within the range of scores."""
    below, above = estimate.error_bars
    return 100 * (estimate.mean - below if side < 0 else estimate.mean + above)
