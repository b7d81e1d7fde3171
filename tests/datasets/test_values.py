"""Values as texts."""

from __future__ import annotations

import math
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from tokenprune.datasets.values import missing, text, texts, written
from tokenprune.errors import SampleError


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (" cat ", "cat"),
        ("nan", "nan"),
        (2, "2"),
        (2.0, "2"),
        (-0.0, "0"),
        (2.5, "2.5"),
        (1e300, "1e+300"),
        (np.float32(2), "2"),
        (np.int64(7), "7"),
        (np.str_("x"), "x"),
        (Decimal("2.00"), "2"),
        (Decimal("100"), "100"),
        (Decimal("2.50"), "2.5"),
        (date(2020, 1, 31), "2020-01-31"),
        ({"answer": 3.0, "answer_id": 1}, "3"),
    ],
)
def test_texts_of_values(value: Any, said: str) -> None:
    assert text(value, "answer", "here") == said
    assert not missing(value)


@pytest.mark.parametrize("value", [None, math.nan, np.float64("nan"), Decimal("nan"), "", "  "])
def test_missing_values(value: Any) -> None:
    assert missing(value)
    assert texts([value, "x", value], "answers", "here") == ("x",)


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(False), math.inf, Decimal("inf"), datetime(2020, 1, 31), b"x", [1], {"text": "x"}, object()],
)
def test_values_without_a_text(value: Any) -> None:
    assert written(value) is None
    with pytest.raises(SampleError, match=r"here: answer is of the type .*; write a text.*columns: {answer: NAME}"):
        text(value, "answer", "here")
