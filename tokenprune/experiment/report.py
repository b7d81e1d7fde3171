"""The files of a report: Markdown, JSON, and where the extra ``report`` is installed a page and a picture."""

from dataclasses import asdict, replace
from pathlib import Path

from tokenprune.experiment import examples
from tokenprune.experiment.page import page_of
from tokenprune.experiment.plot import accuracy_plot, charts_of
from tokenprune.experiment.report_data import ReportData
from tokenprune.experiment.result import ExperimentResult
from tokenprune.experiment.results import Results
from tokenprune.experiment.tables import further_tables, main_table
from tokenprune.report.extra import write_drawn
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
