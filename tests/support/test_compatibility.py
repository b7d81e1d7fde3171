"""docs/compatibility.md says what its cells find, and names tests that exist."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenprune as tp
from tests.support.compatibility import kinds
from tests.support.compatibility.generating import STAGES
from tests.support.compatibility.judging import Found, Row, Verdict, verdict
from tests.support.compatibility.page import COMMAND, PAGE, TABLES, Table, head, named_tests, section
from tests.support.tiny.core import TRANSFORMERS
from tokenprune.errors import UnsupportedFeatureError

TESTS = Path(__file__).parents[1]
TEXT = PAGE.read_text(encoding="utf-8")
WRITTEN = f"transformers {'.'.join(map(str, TRANSFORMERS))}," in TEXT
"""The page is of the installed transformers."""


def part(title: str) -> str:
    """A section of the page."""
    return "## " + TEXT.split("\n## ")[[*(table.title for table in TABLES), "Tests"].index(title) + 1]


@pytest.mark.slow
@pytest.mark.skipif(not WRITTEN, reason="the page tells of another version of transformers")
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.title)
def test_a_table_is_what_its_cells_find(table: Table) -> None:
    torch.set_num_threads(1)
    assert part(table.title).rstrip() == section(table).rstrip(), f"run {COMMAND}"


@pytest.mark.skipif(not WRITTEN, reason="the page tells of another version of transformers")
def test_the_rest_of_the_page_is_what_the_command_writes() -> None:
    assert TEXT.startswith(head() + "\n## "), f"run {COMMAND}"
    assert part("Tests").rstrip() == named_tests().rstrip(), f"run {COMMAND}"
    titles = [line.removeprefix("## ") for line in TEXT.splitlines() if line.startswith("## ")]
    assert titles == [*(table.title for table in TABLES), "Tests"]


def test_every_row_names_tests_that_exist() -> None:
    """By reading the files: nothing is collected."""
    for table in TABLES:
        for row in table.rows:
            assert row.tests, f"{row.name} names no test"
            assert set(row.tests) - {""} <= set(row.cells), f"{row.name}: a test of a cell that it has not"
            for test in row.tests.values():
                file, name = test.split("::")
                tree = ast.walk(ast.parse((TESTS / file).read_text(encoding="utf-8")))
                assert name in {node.name for node in tree if isinstance(node, ast.FunctionDef)}, test


# ---- a cell can fail ---


def finds(**more: Any) -> Any:
    """A cell that finds something."""
    return lambda apply: Found(**{"worst": 0.0, "allowed": 1e-5, "largest": 4.0, **more})


def fails(error: Exception, unpruned: bool) -> Any:
    """A cell that raises; on the unpruned model only if it says so."""

    def cell(apply: Any) -> Found:
        if apply is tp.apply or unpruned:
            raise error
        return Found(0.0, 1e-5, 4.0)

    return cell


def test_verdicts() -> None:
    assert verdict(finds()) == Verdict("exact")
    assert verdict(finds(worst=0.2, rounded="8-bit floats")).word == "lossy"
    assert verdict(fails(UnsupportedFeatureError("no", "use yes"), unpruned=False)) == Verdict("refused", "no")
    assert verdict(fails(ValueError("No. Never"), unpruned=True)).why == "transformers itself raises ValueError: No"


@pytest.mark.parametrize("found", [{"worst": 1e-3}, {"worst": 0.3, "rounded": "8-bit floats"}, {"worst": float("inf")}])
def test_what_is_not_exact_is_an_error(found: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match=r"is (not exact|more than rounding)"):
        verdict(finds(**found))


@pytest.mark.parametrize("error", [ValueError("no"), AssertionError("no"), tp.errors.BudgetError("no")])
def test_other_errors_are_no_verdict(error: Exception) -> None:
    with pytest.raises(type(error), match="no"):
        verdict(fails(error, unpruned=isinstance(error, AssertionError)))


@torch.no_grad()
def test_a_model_that_is_not_pruned_is_noticed() -> None:
    """An engine that drops nothing, and one that drops other tokens than it says."""
    use = kinds.Use(kinds.DEFAULT)
    whole = STAGES.model_copy(update={"budget": tp.load_method("fastv", keep_ratio=1.0).budget})
    with tp.apply(use.model, whole) as run:
        out = use.generate()
    with pytest.raises(AssertionError, match=r"no stage is reported|nothing was pruned"):
        use.judged(run, out)
    with tp.apply(use.model, STAGES) as run:
        use.generate()
        with run.using(None):
            out = use.generate()
    found = use.judged(run, out)
    assert found.worst > 100 * found.allowed


def test_reasons_are_noted_once() -> None:
    """Below a table of several columns; in the line itself where there is one."""
    no, never = (fails(UnsupportedFeatureError(why), unpruned=False) for why in ("no", "never"))
    rows = (Row("a", {"x": no, "y": finds()}), Row("b", {"x": no}), Row("c", {"x": never, "y": no}))
    assert section(Table("T", {"x": "X", "y": "Y"}, rows)).splitlines()[4:] == [
        "| a | refused <sup>1</sup> | exact |",
        "| b | refused <sup>1</sup> | - |",
        "| c | refused <sup>2</sup> | refused <sup>1</sup> |",
        "",
        "1. no",
        "2. never",
    ]
    assert section(Table("T", {"x": "X"}, rows)).splitlines()[4:] == [
        "| a | refused | no |",
        "| b | refused | no |",
        "| c | refused | never |",
    ]
