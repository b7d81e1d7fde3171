"""Ids of rows, and the check that no two rows have the same one."""

from __future__ import annotations

import numpy as np

from tokenprune.datasets.base import Table
from tokenprune.errors import ConfigError


def row_id(table: Table, index: int, value: object) -> str:
    """The id of a row: its own, or that of its place where it has none."""
    return table.row_id(index) if value is None or not str(value).strip() else str(value).strip()


def check_unique(table: Table, column: str) -> None:
    """Check that a column holds different ids.

    The ids are compared by their hashes, with 24 bytes a row while this runs and none afterwards. Only where two hashes
    are equal are the ids themselves compared.

    Raises:
        ConfigError: Two rows have the same id; the message names both.
    """
    rows = len(table)
    hashes = np.fromiter((hash(row_id(table, *pair)) for pair in enumerate(table.values(column))), np.int64, rows)
    ordered = np.sort(hashes)
    twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    del ordered
    if not twice:
        return
    first: dict[str, int] = {}
    for index, value in enumerate(table.values(column)):
        name = row_id(table, index, value)
        if hash(name) in twice and first.setdefault(name, index) != index:
            raise ConfigError(
                f"{table.where(first[name])} and {table.unit} {table.number(index)} have the same id {name!r}",
                "make ids unique, or write columns: {id: null} to number the rows",
            )
