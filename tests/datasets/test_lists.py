"""Lists that a text writes."""

from __future__ import annotations

from typing import Any

import pytest

from tokenprune.datasets.lists import entries, listed
from tokenprune.errors import SampleError


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("['a', 'b']", ["a", "b"]),
        ('["a", null, NaN]', ["a", None, pytest.approx(float("nan"), nan_ok=True)]),
        ("['a', None, nan]", ["a", None, None]),
        ("('a',)", ["a"]),
        ("{'A': 'x'}", {"A": "x"}),
        (r"['\\frac{1}{2}', '\d']", [r"\frac{1}{2}", r"\d"]),
        ("[1, 2.0]", [1, 2.0]),
        ("[]", []),
        ("['(0, 1]', '[1, 2)']", ["(0, 1]", "[1, 2)"]),
        ("cat", None),
        ("(see there)", None),
        ("(1, 2)", None),
        ("[sic] | b", None),
        ("[a] and [b]", None),
        ("{x}", None),
        ("[", None),
        ("", None),
    ],
)
def test_lists_in_texts(cell: str, value: Any) -> None:
    assert listed(cell, "answers", "here") == value


@pytest.mark.parametrize(
    "cell",
    [
        "['a' 'b']",
        "[a, b]",
        "['a', 'b'",
        "['it's', 'b']",
        "['a'] + ['b']",
        "array(['a'])",
        "[open('x')]",
        "[" * 999 + "]" * 999,
    ],
)
def test_what_looks_like_a_list_and_is_none(cell: str) -> None:
    with pytest.raises(SampleError, match=r"here: answers looks like a list and cannot be read as one: .*; write JSON"):
        listed(cell, "answers", "here")


def test_entries() -> None:
    def split(value: object) -> list[object]:
        return ["split", value]

    assert entries("['a']", split, "answers", "here") == ["a"]
    assert entries("a", split, "answers", "here") == ["split", "a"]
    assert entries(["a"], split, "answers", "here") == ["a"]
    assert entries('{"answer": "a"}', split, "answers", "here") == [{"answer": "a"}]
    assert entries(None, split, "answers", "here") == entries(float("nan"), split, "answers", "here") == ()
