"""Several experiments side by side: one table, one picture, and in what their settings differ."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from tokenprune.errors import ConfigError, OutputError
from tokenprune.experiment.answers import difference
from tokenprune.experiment.config import ExperimentConfig
from tokenprune.experiment.plot import charts_of, comparison_plot
from tokenprune.experiment.report import experiment_page
from tokenprune.experiment.report_data import notes
from tokenprune.experiment.result import ExperimentResult
from tokenprune.experiment.results import Results
from tokenprune.experiment.summary import SeriesSummary, summarise
from tokenprune.experiment.tables import COLUMNS
from tokenprune.output.folder import OutputFolder
from tokenprune.report.compare import join_pages
from tokenprune.report.extra import write_drawn
from tokenprune.stats.estimate import Estimate
from tokenprune.tables import csv
from tokenprune.tables.column import Column, estimate, fill, text
from tokenprune.tables.markdown import lines
from tokenprune.tables.table import Heading, Table


@dataclass(frozen=True)
class Compared:
    """One of the experiments.

    Attributes:
        name: Its folder, as short as the other folders allow.
        result: The experiment.
        summaries: The rows of its table.
        settings: Its configuration and its versions, by dotted name.
    """

    name: str
    result: ExperimentResult
    summaries: tuple[SeriesSummary, ...]
    settings: dict[str, str]


def compare(results: Sequence[ExperimentResult]) -> tuple[Compared, ...]:
    """Prepare experiments for a comparison.

    Raises:
        ConfigError: A folder is named twice.
    """
    names = short_names([item.folder for item in results])
    return tuple(
        Compared(name, item, tuple(summarise(item)), _settings(Results(item.folder)))
        for name, item in zip(names, results, strict=True)
    )


def short_names(folders: Sequence[str]) -> list[str]:
    """The end of every folder's path that tells it from the others.

    Raises:
        ConfigError: A folder is named twice.
    """
    paths = [PurePath(Path(folder).resolve()) for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"the folder {path.name!r} is named twice", "name it once")
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = [PurePath(*path.parts[-parts:]).as_posix() for path in paths]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different names")


#: A row of the table: the folder's name, the row of its own table, and the difference to the first folder.
ComparedRow = tuple[str, SeriesSummary, Estimate | None]


def table(compared: Sequence[Compared]) -> Table:
    """The rows of all tables; those of one method and budget stand together.

    Where two folders hold answers to the same questions, the last column is the difference to the first folder, paired
    by question.
    """
    first, rows = compared[0], _rows(compared)
    note = "Intervals are 95 %, clustered by picture."
    if any(row[2] is not None for row in rows):
        note += f" The last column is paired by question: the folder's accuracy minus that of {first.name}."
    return fill("Results", _columns(first.name), rows, note, lambda row: (f"{row[0]}: {row[1].method}", row[1].budget))


def numbers(compared: Sequence[Compared]) -> list[dict[str, float | str]]:
    """The rows of the table in full precision, by the names of CSV files."""
    return csv.rows(_columns(compared[0].name), _rows(compared))


def _columns(first: str) -> tuple[Column[ComparedRow], ...]:
    return (
        text("results", lambda row: row[0], csv="results"),
        *(column.of(lambda row: row[1]) for column in COLUMNS),
        estimate(f"minus {first}", lambda row: row[2], signed=True, csv=("minus_first", "points")),
    )


def _rows(compared: Sequence[Compared]) -> list[ComparedRow]:
    first = compared[0]
    paired = [item for item in compared[1:] if same_questions(first, item)]
    return [
        (item.name, summary, _minus(item, first, method, budget) if item in paired else None)
        for method, budget in _order(compared)
        for item in compared
        for summary in item.summaries
        if (summary.method, summary.budget) == (method, budget)
    ]


def _order(compared: Sequence[Compared]) -> Iterator[tuple[str, str]]:
    """Every method with its budgets: budget by budget, as in the tables of the single experiments."""
    pairs = dict.fromkeys((item.method, item.budget) for one in compared for item in one.summaries)
    budgets = list(dict.fromkeys(budget for _, budget in pairs))
    return iter(sorted(pairs, key=lambda pair: budgets.index(pair[1])))


def same_questions(one: Compared, other: Compared) -> bool:
    """Whether two experiments asked the same questions, as far as their files say."""
    tasks = [{name: text for name, text in item.settings.items() if name.startswith("task.")} for item in (one, other)]
    prints = [Results(item.result.folder).read_json("fingerprints.json") or [] for item in (one, other)]
    shared = min(map(len, prints))
    return bool(tasks[0]) and tasks[0] == tasks[1] and prints[0][:shared] == prints[1][:shared]


def _minus(item: Compared, first: Compared, method: str, budget: str) -> Estimate | None:
    mine, other = item.result.answers.of(method, budget), first.result.answers.of(method, budget)
    if not len(other):
        return None
    return difference(mine.by_question(), other.by_question(), item.result.answers.questions.groups)


def markdown(compared: Sequence[Compared]) -> str:
    """Write the comparison as Markdown."""
    found, differences = table(compared), differing(compared)
    out = [f"# Results of {len(compared)} folders", "", *lines(found), "", found.note]
    if differences.rows:
        out += ["", f"{differences.title}:", "", *lines(differences)]
    for item in compared:
        sentences = notes(item.result)
        if sentences:
            out += ["", f"## {item.name}", "", *sentences]
    return "\n".join(out) + "\n"


def differing(compared: Sequence[Compared]) -> Table:
    """The settings and versions that are not equal everywhere: a row per setting, a column per folder."""
    names = dict.fromkeys(name for item in compared for name in item.settings)
    rows = ([name, *(item.settings.get(name, "") for item in compared)] for name in names)
    headings = [Heading("setting"), *(Heading(item.name) for item in compared)]
    return Table.of_texts("In what the folders differ", headings, (row for row in rows if len(set(row[1:])) > 1))


def write_comparison(compared: Sequence[Compared], folder: str | Path) -> list[Path]:
    """Write ``report.md`` and, with the extra ``report``, ``report.html`` and ``accuracy.png``, ``.svg`` and ``.pdf``.

    Returns:
        The paths of the files.

    Raises:
        OutputError: The folder cannot be written, or is one of those that are compared.

    Warns:
        NotWrittenWarning: Packages of the extra are missing; the warning names the files that were not written.
    """
    output = OutputFolder(folder)
    if any(output.folder.resolve() == Path(item.result.folder).resolve() for item in compared):
        raise OutputError(
            f"{folder} is one of the folders that are compared: its own report would be lost", "choose another folder"
        )
    joined = join_pages({item.name: experiment_page(item.result) for item in compared}, table(compared))

    def page(path: Path) -> None:
        from tokenprune.report.html import render

        output.write(path.name, render(joined))

    def plot(path: Path) -> list[Path]:
        return comparison_plot(
            {item.name: charts_of(item.summaries, item.result.label_free) for item in compared}, path
        )

    with output.locked():
        written = [output.write("report.md", markdown(compared))]
        return written + write_drawn({output.folder / "report.html": page, output.folder / "accuracy.png": plot})


def _settings(results: Results) -> dict[str, str]:
    free = ExperimentConfig.free() - {"batch_size"}  # which may differ within a folder, and changes answers a little
    config = {name: value for name, value in results.config().items() if name not in free}
    return dict(_flat({**config, "versions": results.read_mapping("environment.json")}))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every value of nested mappings with its dotted name, as text for a table."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)
