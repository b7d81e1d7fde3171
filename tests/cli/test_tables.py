"""Tables fit the terminal: fewer columns, folded words, and a line that says where the rest is."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.cells import cell_len

from tests.experiment.test_cli import call
from tests.support.summaries import stored
from tokenprune.cli.printing import REPORT, print_table, terminal_width
from tokenprune.cli.tables import print_bench
from tokenprune.experiment.tables import main_table
from tokenprune.tables.table import Heading, Table

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
RUNS = sorted(RESULTS.rglob("summary.json"))
BENCHES = sorted(path for path in (RESULTS / "speed").glob("*.json") if "batches" in json.loads(path.read_text()))


def always_shown(table: Table) -> int:
    """Characters that the name, the budget and the accuracy take, with two between columns."""
    columns = zip(*([cell.text for cell in row.cells] for row in table.rows), strict=True)
    named = zip([heading.title for heading in table.columns], columns, strict=True)
    widths = [max(map(cell_len, (title, *cells))) for title, cells in named]
    return sum(widths[:3]) + 2 * 2


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.parent.name)
def test_tables_of_experiments(
    path: Path, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    rows = stored(path)
    table = main_table(rows)
    print_table(table, REPORT)
    shown = capsys.readouterr().out.splitlines()
    heading = next(place for place, line in enumerate(shown) if line.startswith("method"))
    lines = shown[: heading + 1 + len(rows)]
    assert max(map(cell_len, lines)) <= max(width, always_shown(table))
    found = zip(lines[heading + 1 :], rows, strict=True)  # one line each
    assert all(line.startswith(row.method) for line, row in found)
    assert all(line.split() for line in lines)
    rest = shown[len(lines) :]
    assert all("no room here" in line and line.endswith("see report.md, or --json") for line in rest)
    assert len(rest) == 1 or width == 120


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("path", BENCHES, ids=lambda path: path.stem)
def test_tables_of_benches(
    path: Path, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    result = json.loads(path.read_text())
    print_bench(result)
    lines = [line for line in capsys.readouterr().out.splitlines() if re.search(r"\d\.\d{3} \(|prefill", line)]
    table = [line for line in lines if "no room" not in line and not line.startswith(result["model"]["name"])]
    assert table
    assert max(map(len, table)) <= width


def test_benches_and_runs_were_found() -> None:
    assert len(RUNS) >= 10
    assert len(BENCHES) >= 4


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("command", ["flops", pytest.param("list", marks=pytest.mark.slow)])
def test_tables_of_commands(
    command: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert call(monkeypatch, command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines if command == "list" else lines[1:])) <= width


def test_a_pipe_gets_all_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table.of_texts("T", [Heading("a" * 100), Heading("b" * 100, rank=1)], [["x" * 300, "y"]])
    print_table(table)
    assert [len(line) for line in capsys.readouterr().out.splitlines()] == [402, 303]
    monkeypatch.setenv("COLUMNS", "100")
    print_table(table)
    assert capsys.readouterr().out.splitlines()[-1] == f"1 more column has no room here ({'b' * 100}): see --json"


def test_the_width_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(fileno=lambda: 1))
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((91, 20)))
    assert terminal_width() == 91
    for stated, width in (("70", 70), ("0", 91), ("wide", 91), ("", 91)):
        monkeypatch.setenv("COLUMNS", stated)
        assert terminal_width() == width
    monkeypatch.delenv("COLUMNS")
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((0, 0)))  # some pseudo terminals
    assert terminal_width() is None
    monkeypatch.setattr(sys, "stdout", SimpleNamespace())
    assert terminal_width() is None
