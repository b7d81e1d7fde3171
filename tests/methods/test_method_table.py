"""Every named method on every family the project names, against the committed table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.method_table import methods, outcome, variants, word
from tests.support.tiny import CORE

TABLE = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "families.md"
torch.set_num_threads(1)


def committed() -> dict[str, list[str]]:
    """Row -> cells of the table."""
    rows = [
        line.strip("| \n").split(" | ") for line in TABLE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"
    ]
    return {row[0]: row[1:] for row in rows}


def test_the_table_has_all_methods_and_families() -> None:
    table = committed()
    assert table["method"] == list(CORE)
    assert set(methods()) <= set(table)
    assert {cell for name in methods() for cell in table[name]} <= {"yes", "no", "video only"}


@pytest.mark.parametrize("family", CORE)
@pytest.mark.parametrize("name", methods())
def test_a_method_runs_on_a_family_as_the_table_says(name: str, family: str) -> None:
    symbol = word({variant: outcome(name, family, variant) for variant in variants(family)})
    assert symbol == committed()[name][list(CORE).index(family)]
