"""The tests of a file are where its path says; CONTRIBUTING.md describes the rule."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "tokenprune"
#: Folders of tests that are not folders of the package.
OTHERS = {"docs", "published", "support", "transformers"}


def modules(folder: str) -> list[str]:
    """Names of a folder's modules, without the package and the contract."""
    return sorted(path.stem for path in (PACKAGE / folder).glob("*.py") if path.stem not in {"__init__", "base"})


def imported(folder: str) -> set[str]:
    """Modules that the tests of a folder import, with dots."""
    names = set()
    for path in (TESTS / folder).glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_folders_are_those_of_the_package() -> None:
    folders = {path.parent.name for path in TESTS.glob("*/test_*.py")}
    assert folders - OTHERS <= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


@pytest.mark.parametrize("name", modules("pruners"))
def test_every_pruner_has_its_file(name: str) -> None:
    assert (TESTS / "pruners" / f"test_{name}.py").is_file()


@pytest.mark.parametrize("name", modules("ops"))
def test_every_operation_is_tested_beside_itself_or_with_its_pruner(name: str) -> None:
    """In `tests/ops/test_<name>.py`, or in the test of the pruner or budget that it was written for."""
    module = f"tokenprune.ops.{name}"
    assert (TESTS / "ops" / f"test_{name}.py").is_file() or module in imported("pruners") | imported("budgets")
