"""``tokenprune report``: the reports of finished runs and tunes, made again from their folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenprune.cli.outputs import check_folder, check_writable
from tokenprune.cli.printing import REPORT, AsJson, print_json, print_lines, print_table, print_written
from tokenprune.core.text import write_file
from tokenprune.errors import ConfigError

if TYPE_CHECKING:  # helps answer at once: what needs torch is imported where it is used
    from tokenprune.experiment.comparison import Compared
    from tokenprune.experiment.paper_table import Tables

#: Where a comparison is written by default.
COMPARISON = Path("report")


def report(
    results: Annotated[list[Path], typer.Argument(help="Output folders of runs, or of a tune.")],
    output: Annotated[
        Path | None, typer.Option(help="Output folder. [default: the folder itself; for several folders: report]")
    ] = None,
    latex: Annotated[Path | None, typer.Option(help="Also write the table for a paper to this LaTeX file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write all numbers to this CSV file.")] = None,
    share: Annotated[
        bool, typer.Option("--share", help="In the LaTeX table, also give the share of the unpruned accuracy.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the reports of finished results again, or compare several. No model is loaded."""
    from tokenprune.cli.as_json import comparison_data, experiment_data, tune_data
    from tokenprune.cli.tables import print_result, print_tune
    from tokenprune.experiment import write_report
    from tokenprune.experiment.comparison import compare, write_comparison
    from tokenprune.experiment.folder import read_result
    from tokenprune.experiment.paper_table import csv_table, latex_table
    from tokenprune.experiment.summary import summarise
    from tokenprune.tuning.folder import holds_tune, read_tune

    if share and latex is None:
        raise ConfigError("--share adds a column to the LaTeX table", "give --latex, too")
    tune = next(filter(holds_tune, results), None)
    if tune is not None and (len(results) > 1 or latex is not None or csv is not None):
        what = "a comparison takes results of runs" if len(results) > 1 else "tables for papers are made of runs"
        raise ConfigError(f"{what}, and {tune} holds a tune", "name the folders of runs")
    if output is not None:
        check_folder(output)
    for path in (latex, csv):
        if path is not None:
            check_writable(path)
    if tune is not None:
        tuned = read_tune(tune)
        written = tuned.save(output or tune)
        if as_json:
            print_json(tune_data(tuned, written))
        else:
            print_tune(tuned)
            print_written(written)
        return
    finished = [read_result(folder) for folder in results]
    tables: Tables
    if len(finished) == 1:
        tables = {"": summarise(finished[0])}
        written = write_report(finished[0], folder=output)
    else:
        compared = compare(finished)
        tables = {item.name: item.summaries for item in compared}
        written = write_comparison(compared, output or COMPARISON)
    if latex is not None:
        write_file(latex, latex_table(tables, share))
        written.append(latex)
    if csv is not None:
        write_file(csv, csv_table(tables))
        written.append(csv)
    if as_json:
        one = len(finished) == 1
        print_json(experiment_data(finished[0], written) if one else comparison_data(compared, written))
        return
    if len(finished) == 1:
        print_result(finished[0])
    else:
        _print_comparison(compared)
    print_written(written)


def _print_comparison(compared: Sequence[Compared]) -> None:
    from tokenprune.experiment.comparison import table
    from tokenprune.experiment.report_data import notes

    print_table(table(compared), REPORT)
    print_lines(*(f"{item.name}: {sentence}" for item in compared for sentence in notes(item.result)))
