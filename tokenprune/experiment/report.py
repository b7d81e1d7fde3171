"""A finished experiment as text, as JSON, as a page with pictures, and as notebooks show it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tokenprune.budgets.label import in_words
from tokenprune.core.references import UNPRUNED
from tokenprune.experiment import examples
from tokenprune.experiment.finding import find
from tokenprune.experiment.plot import accuracy_plot, charts_of, comparison_figure
from tokenprune.experiment.report_data import ReportData
from tokenprune.experiment.result import ExperimentResult
from tokenprune.experiment.results import Results
from tokenprune.experiment.tables import further_tables, main_table
from tokenprune.output.folder import CONFIG
from tokenprune.report.extra import drawn, write_drawn
from tokenprune.report.page import Document, Example, Page
from tokenprune.tables.html import parts_html
from tokenprune.tables.markdown import lines


def markdown(result: ExperimentResult) -> str:
    """Write the report as Markdown: notes and checks of the model, the main table, all further tables."""
    return _markdown(ReportData.of(result))


def _markdown(data: ReportData) -> str:
    out = ["# Results", "", *data.sentences, *([""] if data.sentences else [])]
    out += [*lines(main_table(data.summaries)), "", data.size]
    for table in further_tables(data):
        out += ["", f"{table.title}:", "", *lines(table), *(["", table.note] if table.note else [])]
    return "\n".join(out) + "\n"


def write_report(result: ExperimentResult, folder: str | Path | None = None) -> list[Path]:
    """Write ``report.md``, ``summary.json`` and, with the extra ``report``, ``report.html`` and the plots.

    Args:
        result: The experiment.
        folder: Where to write; the experiment's own folder by default.

    Returns:
        The paths of the files.

    Warns:
        NotWrittenWarning: Packages of the extra are missing; the warning names the files that were not written.
    """
    results, data = Results(folder or result.folder), ReportData.of(result)
    written = [
        results.write("report.md", _markdown(data)),
        results.write_json("summary.json", [asdict(item) for item in data.summaries]),
    ]

    def page(path: Path) -> list[Path]:
        from tokenprune.report.html import render

        found, reason = examples.for_report(Results(result.folder))
        made = page_of(data, examples.with_answers(found, result.rows))
        if reason is not None:
            made = replace(made, notes=(*made.notes, f"There are no example pictures: {reason}"))
        return [results.write(path.name, render(made))]

    def plot(path: Path) -> list[Path]:
        return accuracy_plot(charts_of(data.summaries, result.label_free), path)

    return written + write_drawn({results.folder / "report.html": page, results.folder / "accuracy.png": plot})


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


@dataclass(frozen=True)
class ShownResult(ExperimentResult):
    """A finished experiment that a notebook shows as its main table, what to know about it, and its chart."""

    def _repr_html_(self) -> str:
        data = ReportData.of(self)
        charts = charts_of(data.summaries, self.label_free)
        chart = [drawn(comparison_figure({"": charts}))] if charts.points else []
        return parts_html(main_table(data.summaries, data.size), *data.sentences, *chart)
