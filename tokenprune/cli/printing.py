"""Where the commands print, and how: tables, sentences, names of files. Nothing heavy is imported."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tokenprune.output.lines import json_ready
from tokenprune.tables import terminal
from tokenprune.tables.table import Table

console = Console()
#: Where the columns of a run's and a tune's table are that have no room.
REPORT = "report.md, or --json"
#: The option of every command that prints a table.
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else on stdout.")]


def print_json(data: Any) -> None:
    """Print data as JSON."""
    print(json.dumps(json_ready(data), indent=1, allow_nan=False))


def progress_console(as_json: bool) -> Console:
    """Where the progress is drawn: with ``--json`` not among the output."""
    return Console(stderr=True) if as_json else console


def terminal_width() -> int | None:
    """Characters of a line, as ``COLUMNS`` or the terminal says; None where the output is a pipe or a file."""
    stated = os.environ.get("COLUMNS", "")
    if stated.isdecimal() and int(stated) > 0:
        return int(stated)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError, AttributeError):  # a pipe, a file, or a stream of somebody's own
        return None


def print_table(table: Table, elsewhere: str = "--json") -> None:
    """Print a table as wide as the terminal; the headings are bold, and rows whose first cell is.

    Args:
        table: The table.
        elsewhere: Where to find the columns that have no room.
    """
    fitted = terminal.fit(table, terminal_width())
    strong = [True, *(row.cells[0].strong for row in table.rows)]
    for lines, bold in zip([fitted.heading, *fitted.rows], strong, strict=True):
        for line in lines:
            console.print(line, style="bold" if bold else None, highlight=False, markup=False, soft_wrap=True)
    if fitted.left_out:
        count = "1 more column has" if len(fitted.left_out) == 1 else f"{len(fitted.left_out)} more columns have"
        print_lines(f"{count} no room here ({'; '.join(fitted.left_out)}): see {elsewhere}")


def print_lines(*lines: str) -> None:
    """Print sentences, one per line, without the marks of Markdown."""
    for line in lines:
        console.print(line.replace("**", ""), highlight=False, markup=False, soft_wrap=True)


def print_written(paths: Sequence[Path]) -> None:
    """Print which files were written, those of one picture in one line."""
    pictures = {path.with_suffix("") for path in paths if path.suffix == ".png"}
    for path in paths:
        if path.suffix in (".svg", ".pdf") and path.with_suffix("") in pictures:
            continue
        others = ", and as .svg and .pdf" if path.suffix == ".png" else ""
        console.print(f"written: {path}{others}", highlight=False, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """A time in words, e.g. ``3 min 20 s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
