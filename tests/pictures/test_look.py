"""What a look says of itself, in numbers and in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tokenprune.adapters.views import View
from tokenprune.pictures.describe import caption, describe, judgement, numbers, shorter
from tokenprune.pictures.look import Look, StageLook

#: 2 x 3 tokens on one picture, and a separator behind each row.
CELLS = np.array([(0, 0, 0), (0, 0, 1), (0, 0, 2), (-1, -1, -1), (0, 1, 0), (0, 1, 1), (0, 1, 2), (-1, -1, -1)])
WHOLE = (0.0, 0.0, 1.0, 1.0)


def stage(layer: int, *kept: int, tokens: int = 8, **fields: Any) -> StageLook:
    return StageLook(layer, np.isin(np.arange(tokens), kept), **fields)


def look(*stages: StageLook, **fields: Any) -> Look:
    return Look("fastv", (View(0, WHOLE, 2, 3),), CELLS, stages, **fields)


def test_values_are_put_on_the_grid() -> None:
    grid = look().grid(0, np.arange(8), -1)
    assert grid.tolist() == [[0, 1, 2], [4, 5, 6]]


def test_cells_without_a_token_are_empty() -> None:
    sparse = replace(look(), cells=CELLS[:2])
    assert sparse.grid(0, np.array([7, 8]), -1).tolist() == [[7, 8, -1], [-1, -1, -1]]


def test_tokens_and_what_is_left_of_them() -> None:
    assert look().tokens == 8
    assert look().kept.all()
    assert np.flatnonzero(look(stage(2, 0, 1, 4), stage(5, 4)).kept).tolist() == [4]


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("two", "two", True),
        ("Two.", "two", True),
        ("Two dogs", "two", True),
        ("A dog.", "dog", True),
        ("dog", "the dog", True),
        ("a", "a", True),
        ("a", "b", False),
        ("twofold", "two", False),
        ("there are two", "two", False),
        ("", "two", False),
        ("not two", "two", False),
        ("+", "+", True),
        ("-", "+", False),
        ("A. red", "A", True),  # the letter of a choice, no article
        ("B. red", "A", False),
        ("A red car", "red car", True),
        ("3.5", "3", False),
        ("3.", "3", True),
        ("5", "-5", False),
        ("-5 degrees", "\N{MINUS SIGN}5", True),
        ("12,000", "12", False),
        ("12,000", "12000", True),
        ("1, 2 and 3", "1,2", True),
        ("10-12", "10 12", True),
        ("\u0915\u093f", "\u0915\u093e", False),  # Hindi: the same consonant with two vowels
        ("cafe\u0301", "caf\u00e9", True),
        ("\u2764\ufe0f", "\u2600\ufe0f", False),  # two emoji with the same selector
        ("\u2764\ufe0f", "\u2764\ufe0f", True),
        ("two", None, None),
        ("two", "", None),
        (None, "two", None),
    ],
)
def test_right_and_wrong(answer: str | None, expected: str | None, right: bool | None) -> None:
    assert look(answer=answer, expected=expected).right is right


def test_the_score_of_the_task_decides() -> None:
    assert look(answer="2", expected="two", score=1.0).right is True
    assert look(answer="two", expected="two", score=0.0).right is False


def test_description_of_the_unpruned_model() -> None:
    assert describe(look(answer="two")) == 'fastv keeps all 8 visual tokens. It answers "two".'


def test_description_of_stages() -> None:
    text = describe(look(stage(2, 0, 1, 4), stage(5, 4), answer="one", expected="two"))
    assert text == (
        "Of 8 visual tokens fastv keeps 3 before layer 2, 1 before layer 5 (12.5 %)."
        ' It answers "one", which is wrong (expected: two).'
    )


def test_description_says_where_most_tokens_are() -> None:
    cells = np.array([(0, row, column) for row in range(6) for column in range(6)])
    corner = Look("fastv", (View(0, WHOLE, 6, 6),), cells, (stage(2, 28, 29, 34, 0, tokens=36),))
    assert "75 % of these at the bottom right" in describe(corner)
    spread = replace(corner, stages=(stage(2, 0, 3, 17, 30, tokens=36),))
    assert "of these" not in describe(spread)


def test_description_when_nothing_was_dropped() -> None:
    same = stage(2, *range(8), reason="the budget keeps all 8")
    assert describe(look(same)) == "fastv drops nothing: the budget keeps all 8."


def test_caption_counts_what_is_on_no_picture() -> None:
    assert caption(look(), None) == "all 8 visual tokens"
    assert caption(look(), stage(2, 0, 3)) == "layer 2: 2 of 8 visual tokens (off the picture: 1 of 2)"
    assert caption(look(), stage(2, *range(8), reason="not pruned: why")) == "layer 2: nothing dropped (why)"


def test_judgement_has_a_sign_and_a_word() -> None:
    unpruned = look(answer="two", expected="two")
    assert judgement(unpruned, unpruned) == [("✓", "right")]
    pruned = look(stage(2, 0), answer="Three", expected="two")
    assert judgement(pruned, unpruned) == [("✗", "wrong (expected: two)"), ("≠", "changed")]
    assert judgement(replace(pruned, answer="TWO.", expected=None), unpruned) == [("=", "as unpruned")]
    assert judgement(replace(pruned, expected=None), None) == []


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        ([0, 1, 2, 6], "1-3, 7"),
        ([0], "1"),
        ([0, 4, 8, 12], "every 4th from 1 to 13"),
        ([1, 3, 5, 7], "every 2nd from 2 to 8"),
    ],
)
def test_numbers(chosen: list[int], text: str) -> None:
    assert numbers(chosen) == text


def test_long_texts_are_cut_after_a_word() -> None:
    assert shorter("one two three four", 12) == "one two…"
    assert shorter("a" * 30, 10) == "a" * 9 + "…"
    assert shorter(" one\ntwo\tthree\0 ", 20) == "one two three"
