"""Rows of results as lines of JSON, of which the last may be incomplete."""

import json
import math
from collections.abc import Iterator, Mapping
from functools import singledispatch
from pathlib import Path
from types import NoneType
from typing import Any

from tokenprune.core.text import well_formed

Row = dict[str, Any]


def line(row: Row) -> str:
    """A row as a line of JSON; see :func:`json_ready`."""
    return json.dumps(json_ready(row), allow_nan=False) + "\n"


@singledispatch
def json_ready(value: Any) -> Any:
    """The value as JSON can write it, so that no file fails on one when all answers are there.

    Numbers that JSON does not have become None; arrays and scalars of numpy and torch become numbers and lists; what
    JSON knows nothing of (paths, dates, enumerations) becomes its text. Texts are well formed.
    """
    to_plain = getattr(value, "tolist", None)  # numpy and torch
    return json_ready(to_plain()) if callable(to_plain) else well_formed(str(value))


@json_ready.register(int)
@json_ready.register(NoneType)
def _(value: int | None) -> int | None:
    return value


@json_ready.register
def _(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@json_ready.register
def _(value: str) -> str:
    return well_formed(value)


@json_ready.register
def _(value: bytes) -> str:
    return value.decode("utf-8", "replace")


@json_ready.register
def _(value: Mapping) -> dict[Any, Any]:  # type: ignore[type-arg]
    return {_key(key): json_ready(item) for key, item in value.items()}


def _key(key: Any) -> Any:
    """JSON writes numbers and null as texts itself."""
    return key if isinstance(key, int | None) else well_formed(str(key))


@json_ready.register(list)
@json_ready.register(tuple)
def _(value: list[Any]) -> list[Any]:
    return [json_ready(item) for item in value]


@json_ready.register(set)
@json_ready.register(frozenset)
def _(value: set[Any]) -> list[Any]:
    return sorted(map(json_ready, value), key=str)


def lines(path: Path) -> Iterator[str]:
    """The lines of a file, with their ends; none if there is no such file."""
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            yield from file


def parse(text: str, *fields: str) -> Row | None:
    """The row of a line; None if the line is incomplete, as the last one of a killed run may be.

    Args:
        text: The line, with its end.
        fields: What a complete row has.
    """
    try:
        row = json.loads(text)
    except ValueError:
        return None
    complete = text.endswith("\n") and isinstance(row, dict) and all(field in row for field in fields)
    return row if complete else None
