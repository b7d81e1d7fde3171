"""docs/families.md says what adapters say of every image-text model type."""

from __future__ import annotations

import pytest

from tests.support.families_table import PAGE, VERSION, load, page, row, versions
from tests.support.survey import EXACT, LAST, TYPES, UNTESTED, USABLE, Finding, cases_by_type, judged, structure_of
from tests.support.tiny import EVERY

KEPT = VERSION in versions()
"""The installed transformers is one of those that the page tells of."""


def test_the_page_is_what_was_found() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.support.families_table"


@pytest.mark.parametrize("version", versions())
def test_whatever_is_accepted_is_tested(version: str) -> None:
    table = load(version)
    assert [name for name, found in table.items() if found.status == UNTESTED] == []
    assert all(found.cases for found in table.values() if found.status in USABLE)
    assert all(found.why for found in table.values() if found.status not in USABLE)


def test_both_ends_of_the_supported_versions_are_on_the_page() -> None:
    assert versions() == ["5.17", "5.24"]


@pytest.mark.skipif(not KEPT, reason=f"nothing is kept of transformers {VERSION}")
def test_every_model_type_and_every_case_is_on_the_page() -> None:
    table = load(VERSION)
    assert set(table) == set(TYPES)
    cases = {name: tuple(case.name for case in cases) for name, cases in cases_by_type().items()}
    assert {name: found.cases for name, found in table.items() if found.cases} == cases
    assert sum(map(len, cases.values())) == len(EVERY)


@pytest.mark.skipif(not KEPT, reason=f"nothing is kept of transformers {VERSION}")
@pytest.mark.parametrize("name", sorted(TYPES))
def test_adapters_say_what_is_kept(name: str) -> None:
    """Status, signals and reasons of every type; the contract matrix tests what is accepted."""
    kept, found = load(VERSION)[name], structure_of(name)
    assert (judged(name) if (kept.status, found.status) == (LAST, EXACT) else found) == kept


def test_a_model_type_that_is_accepted_without_a_case_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.survey.cases_by_type", dict)
    assert structure_of("vipllava").status == UNTESTED


def test_a_row_shows_each_version() -> None:
    exact = Finding("exact", ("a",), ("attention",))
    broken = Finding("broken upstream", ("a",), why="x | y")
    assert row("a", {"1": {"a": exact}, "2": {"a": broken}}) == "| `a` | exact | broken upstream | attention | x / y |"
    assert row("a", {"1": {}, "2": {"a": exact}}) == "| `a` |  | exact | attention |  |"
