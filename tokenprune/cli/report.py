"""`tokenprune report`: the reports of finished runs and tunes, made again from their folders. No model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokenprune.cli.failures import check_writable
from tokenprune.cli.tables import console, print_result, print_tune, print_written
from tokenprune.core.text import well_formed
from tokenprune.errors import ConfigError, OutputError
from tokenprune.experiment import ExperimentResult, write_report
from tokenprune.experiment.comparison import Compared, compare, table, write_comparison
from tokenprune.experiment.folder import read_result
from tokenprune.experiment.numbers import notes
from tokenprune.experiment.paper_table import Tables, csv_table, latex_table
from tokenprune.experiment.summary import summarise
from tokenprune.tuning.folder import holds_tune, read_tune

#: Where a comparison is written by default.
COMPARISON = Path("report")


def make_reports(
    folders: Sequence[Path], output: Path | None, latex: Path | None, csv: Path | None, share: bool
) -> None:
    """Make the report of one folder again, or compare several.

    Args:
        folders: Output folders of runs, or a single one of a tune.
        output: Where to write; by default a single report's own folder, and :data:`COMPARISON`.
        latex: Write the table as LaTeX to this file.
        csv: Write the numbers as CSV to this file.
        share: Also show, in LaTeX, the accuracy as a share of the unpruned model's.

    Raises:
        TokenPruneError: A folder holds no results, or a file cannot be written.
    """
    if share and latex is None:
        raise ConfigError("--share adds a column to the LaTeX table", "give --latex, too")
    tunes = [folder for folder in folders if holds_tune(folder)]
    if tunes and (len(folders) > 1 or latex is not None or csv is not None):
        what = "a comparison takes results of runs" if len(folders) > 1 else "tables for papers are made of runs"
        raise ConfigError(f"{what}, and {tunes[0]} holds a tune", "name the folders of runs")
    for path in (latex, csv):
        if path is not None:
            check_writable(path)
    if tunes:
        _tune(tunes[0], output)
        return
    results = [read_result(folder) for folder in folders]
    if len(results) == 1:
        tables: Tables = {"": summarise(results[0])}
        written = _single(results[0], output)
    else:
        compared = compare(results)
        tables = {item.name: item.summaries for item in compared}
        written = write_comparison(compared, output or COMPARISON)
        _print_comparison(compared)
    if latex is not None:
        label_free = all(result.label_free for result in results)
        written.append(_write(latex, latex_table(tables, label_free, share)))
    if csv is not None:
        written.append(_write(csv, csv_table(tables)))
    print_written(written)


def _tune(folder: Path, output: Path | None) -> None:
    result = read_tune(folder)
    written = result.save(output or folder)
    print_tune(result)
    print_written(written)


def _single(result: ExperimentResult, output: Path | None) -> list[Path]:
    if output is not None:
        check_writable(output / "report.md")
    written = write_report(result, folder=output)
    print_result(result)
    return written


def _print_comparison(compared: Sequence[Compared]) -> None:
    titles, rows = table(compared)
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for index, title in enumerate(titles):
        shown.add_column(escape(title), justify="left" if index < 3 else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*map(escape, row))
    Console(width=max(console.width, 220)).print(shown)
    for item in compared:
        for sentence in notes(item.result):
            console.print(escape(f"{item.name}: {sentence.replace('**', '')}"), highlight=False, soft_wrap=True)


def _write(path: Path, text: str) -> Path:
    try:
        path.write_text(well_formed(text), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror})", "choose another file") from None
    return path
