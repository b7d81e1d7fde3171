"""The columns of a table by their roles: picture, question, answer ...; the ids in one of them are unique."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np

from tokenprune.datasets.base import Table
from tokenprune.errors import ConfigError

Talk = Literal["conversation", "history", "system"]
Role = Literal["image", "images", "video", "question", "answer", "answers", "choices", "id", "type", Talk]
ROLES: tuple[Role, ...] = get_args(Role)
PICTURES: tuple[Role, ...] = ("image", "images", "video")
ANSWERS: tuple[Role, ...] = ("answers", "answer")


def find_columns(table: Table, chosen: Mapping[Role, str | None]) -> dict[Role, str]:
    """The column of every role that the table has. A role's own name is its default column.

    Args:
        table: The table.
        chosen: The columns that the user named; None where a role shall have no column.

    Raises:
        ConfigError: A named column does not exist, or no column holds pictures or videos.
    """
    for role, column in chosen.items():
        if column is not None and column not in table.columns:
            raise ConfigError(f"columns: {table.name} has no column {column!r} ({role})", near(column, table))
    names = {role: chosen.get(role, role) for role in ROLES}
    found = {role: name for role, name in names.items() if name is not None and name in table.columns}
    if not any(role in found for role in PICTURES):
        what = f"columns: {table.name} has no column 'image', 'images' or 'video'"
        raise ConfigError(what, f"write columns: {{image: NAME}}; {near('image', table)}")
    return found


def near(name: str, table: Table) -> str:
    """The hint of a wrong column: similar names, if any, and all names."""
    similar = difflib.get_close_matches(name, table.columns, n=2, cutoff=0.6)
    listing = ", ".join(table.columns)
    return f"did you mean {' or '.join(map(repr, similar))}? (it has: {listing})" if similar else f"it has: {listing}"


def misspelt(role: Role, table: Table) -> str | None:
    """A column whose name looks like a misspelt role, if there is one."""
    return next(iter(difflib.get_close_matches(role, table.columns, n=1, cutoff=0.8)), None)


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
