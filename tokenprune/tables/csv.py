"""Tables for other programs: all numbers, in full precision."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from tokenprune.tables.column import Column

Item = TypeVar("Item")


def text(columns: Sequence[Column[Item]], items: Iterable[Item]) -> str:
    """A CSV file: the columns that have names there, a row per item. Unknown numbers are empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, dict.fromkeys(name for column in columns for name in column.csv), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows(columns, items))
    return out.getvalue()


def rows(columns: Sequence[Column[Item]], items: Iterable[Item]) -> list[dict[str, float | str]]:
    """A mapping per item, from the names of CSV files to the numbers and texts, in full precision; for JSON."""
    return [{name: get(item) for column in columns for name, get in column.csv.items()} for item in items]


def _cell(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.10g}" if math.isfinite(value) else ""
