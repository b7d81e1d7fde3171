"""Values of a row as texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tokenprune.errors import SampleError

#: How a value of each type is read as a text. True and false are left out: nobody knows which word they stand for.
TEXTS: dict[type, Callable[[Any], str]] = {
    str: str.strip,
    int: str,
    float: repr,
    dict: lambda value: str(value["answer"]).strip(),  # one of ten annotators, in the form of the VQA benchmark
}


def text(value: object, column: str, where: str) -> str:
    """A value as a text without spaces at its ends; empty if there is none.

    Raises:
        SampleError: The value is neither text nor number.
    """
    if value is None:
        return ""
    try:
        return TEXTS[type(value)](value)
    except KeyError:
        what = f"{where}: {column} is of the type {type(value).__name__}: {short(value)}"
        raise SampleError(what, "write a text or a number") from None


def texts(values: Sequence[object], column: str, where: str) -> tuple[str, ...]:
    """Values as texts; empty ones are left out."""
    return tuple(read for value in values if (read := text(value, column, where)))


def short(value: object) -> str:
    """A value for a message, cut to one short line."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
