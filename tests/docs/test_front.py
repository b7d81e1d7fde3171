"""The table of the README is what benchmarks/front.py makes of the committed results."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, which the tests that load other plans do not see."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("front")
    for name in ("front", "comparison", "tables"):
        sys.modules.pop(name, None)


def test_the_table_of_readme_is_that_of_the_results(front: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    front.main()
    table = capsys.readouterr().out
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"<!-- written by `python benchmarks/front.py`; a test compares -->\n{table}\n" in readme


def test_the_table_of_ratios_is_that_of_the_results(front: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    front.main(ratio=True)
    assert capsys.readouterr().out == (ROOT / "benchmarks" / "results" / "ratio.md").read_text(encoding="utf-8")


def test_rows_are_read_from_the_cells(front: ModuleType) -> None:
    """In the order of the tasks and shares that README names: the figures of docs/comparison/index.md."""
    (accuracies,) = [row[1:] for row in front.rows() if row[0] == "`entropyprune`"]
    page = (ROOT / "docs" / "comparison" / "index.md").read_text(encoding="utf-8")
    nine = page.split("### The nine cells")[1].splitlines()
    for share, found in zip(front.SHARES, accuracies, strict=True):
        own = [
            next(line for line in nine if line.startswith(f"| {task} | {share} |")).split(" | ")[5]
            for task in ("Digits", "easy-VQA", "Clips")
        ]
        assert found == " · ".join(f"{float(kept):.0f}" for kept in own)


def test_speed_belongs_to_its_budget(front: ModuleType) -> None:
    """The JSON rows have no budget: their order is that of the printed table, which has."""
    printed = (ROOT / "benchmarks" / "results" / "speed" / "batch1.md").read_text(encoding="utf-8")
    for tokens in front.SHARES.values():
        row = next(line for line in printed.splitlines() if line.startswith(f"| entropyprune {tokens} |"))
        assert row.split(" | ")[3].startswith(f"{front.speed(tokens):.3f} ")
