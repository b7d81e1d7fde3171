"""Rows of results as lines of JSON, of which the last may be incomplete."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def line(row: Row) -> str:
    """A row as a line of JSON; NaN and infinity become null."""
    return json.dumps(json_ready(row), allow_nan=False) + "\n"


def json_ready(value: Any) -> Any:
    """The value with None in place of every number that JSON does not have."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: json_ready(item) for key, item in value.items()}
        case list() | tuple():
            return [json_ready(item) for item in value]
        case _:
            return value


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
