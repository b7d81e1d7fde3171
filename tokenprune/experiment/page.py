"""The page of an experiment: the run, the finding, tables, charts, and how to repeat it."""

from collections.abc import Mapping
from typing import Any

from tokenprune.budgets.label import in_words
from tokenprune.core.references import UNPRUNED
from tokenprune.experiment.finding import find
from tokenprune.experiment.plot import charts_of
from tokenprune.experiment.report_data import ReportData
from tokenprune.experiment.result import ExperimentResult
from tokenprune.experiment.results import Results
from tokenprune.experiment.tables import further_tables, main_table
from tokenprune.output.folder import CONFIG
from tokenprune.report.page import Document, Example, Page


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
    text = results.read_text(CONFIG)
    config = results.config()
    versions = results.read_mapping("environment.json")
    charts = charts_of(data.summaries, data.result.label_free)
    return Page(
        title=f"Visual token pruning: model {_name(config.get('model'))}, task {_name(config.get('task'))}",
        ran=_ran(data, config),
        finding=find(data),
        notes=data.sentences,
        table=main_table(data.summaries, data.size),
        charts=charts if charts.points else None,
        tables=tuple(further_tables(data)),
        examples=examples,
        documents=(Document("Configuration (config.yaml)", text),) if text else (),
        versions=tuple((name, str(value)) for name, value in versions.items()),
        repeat=_repeat(config),
    )


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
        f" `{_name(config.get('model'))}`, at {_count(len(budgets), 'budget')}: {', '.join(map(in_words, budgets))}."
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
