"""Values of a row as texts."""

import math
from collections.abc import Sequence
from datetime import date, datetime
from decimal import Decimal
from functools import singledispatch
from typing import Any

import numpy as np

from tokenprune.errors import SampleError

EXACT = 2**53  # up to here a float holds every integer


@singledispatch
def written(value: Any) -> str | None:
    """A value as a text without spaces at its ends: empty if it is missing, None if it is neither text nor number.

    Missing are null and NaN; the text "nan" is a text. A float that is an integer is read as one: a column of integers
    becomes one of floats when a value is missing. Times are left out, as they can be written in many ways, and so are
    true and false: nobody knows which word they stand for.
    """
    return "" if value is None else None


@written.register
def _(value: str) -> str | None:
    return value.strip()


@written.register
def _(value: int) -> str | None:
    return str(value)


@written.register
def _(value: bool) -> str | None:
    return None


@written.register
def _(value: float) -> str | None:
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return None
    return str(int(value)) if value.is_integer() and abs(value) <= EXACT else repr(value)


@written.register
def _(value: Decimal) -> str | None:
    if not value.is_finite():
        return "" if value.is_nan() else None
    return f"{value.normalize():f}"


@written.register
def _(value: np.generic) -> str | None:
    return written(value.item())


@written.register
def _(value: date) -> str | None:
    return value.isoformat()


@written.register
def _(value: datetime) -> str | None:
    return None


@written.register
def _(value: dict) -> str | None:  # type: ignore[type-arg]
    """One of ten annotators, in the form of the VQA benchmark."""
    return written(value["answer"]) if "answer" in value else None


def missing(value: object) -> bool:
    """Whether a value is null, NaN or an empty text."""
    return written(value) == ""


def text(value: object, role: str, where: str) -> str:
    """A value as a text without spaces at its ends; empty if it is missing.

    Args:
        value: The value.
        role: What it is, for messages.
        where: The row, for messages.

    Raises:
        SampleError: The value is neither text nor number.
    """
    read = written(value)
    if read is None:
        what = f"{where}: {role} is of the type {type(value).__name__}: {short(value)}"
        if isinstance(value, bool | np.bool_):
            fix = "write a text, e.g. yes or no: nobody knows which word it stands for"
        else:
            fix = "write a text or a number"
        raise SampleError(what, f"{fix}; or name another column, null for none: columns: {{{role}: NAME}}")
    return read


def texts(values: Sequence[object], role: str, where: str) -> tuple[str, ...]:
    """Values as texts; missing ones are left out."""
    return tuple(read for value in values if (read := text(value, role, where)))


def short(value: object) -> str:
    """A value for a message, cut to one short line."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
