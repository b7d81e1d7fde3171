"""Tables for other programs: all numbers, in full precision."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from tokenprune.tables.column import Column

Item = TypeVar("Item")


def text(columns: Sequence[Column[Item]], items: Iterable[Item]) -> str:
    """A CSV file: the columns that have names there, a row per item. Unknown numbers are empty."""
    numbers = {name: get for column in columns for name, get in column.csv.items()}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(numbers)
    writer.writerows([_cell(get(item)) for get in numbers.values()] for item in items)
    return out.getvalue()


def _cell(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.10g}" if math.isfinite(value) else ""
