"""Keywords for budgets: each is a budget with one field, and the command line has the same names."""

from __future__ import annotations

import pytest

import tokenprune as tp
from tokenprune.budgets.stated import STATED, stated_budget
from tokenprune.core.plugins import registry
from tokenprune.errors import ConfigError


def test_every_keyword_is_a_field_of_its_budget() -> None:
    for keyword, stated in STATED.items():
        assert stated.keyword == keyword
        assert stated.option == f"--{keyword.replace('_', '-')}"
        if not stated.measured:
            assert stated.field in registry("budgets").get(stated.budget).model_fields


def test_no_keyword_is_a_field_of_a_budget() -> None:
    """Else a field could not be given after its budget's name."""
    for name in registry("budgets").names():
        assert not STATED.keys() & registry("budgets").get(name).model_fields.keys()


def test_a_budget_as_configs_have_it() -> None:
    assert stated_budget(None, {}, "x") is None
    assert stated_budget("drop_all", {}, "x") == {"name": "drop_all"}
    assert stated_budget("keep_count", {"tokens": 3}, "x") == {"name": "keep_count", "tokens": 3}
    assert stated_budget(None, {"keep_tokens": 3}, "x") == {"name": "keep_count", "tokens": 3}


@pytest.mark.parametrize("field", ["tokens", "ratio", "percent", "scope", "ratios"])
def test_a_field_without_its_budget_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^x: {field}=3 "):
        stated_budget(None, {field: 3}, "x")


def test_keywords_make_the_methods_that_their_budgets_make() -> None:
    for stated in STATED.values():
        number = {"tokens": 64, "ratio": 0.3, "percent": 20}[stated.field]
        if not stated.measured:
            short = tp.load_method("fastv", **{stated.keyword: number})
            assert short == tp.load_method("fastv", stated.budget, **{stated.field: number})
