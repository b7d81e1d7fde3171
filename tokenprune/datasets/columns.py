"""The columns of a table by their roles: picture, question, answer ...; the ids in one of them are unique."""

import difflib
import re
import string
from collections.abc import Iterator, Mapping
from typing import Literal, get_args

import numpy as np

from tokenprune.datasets.base import Table
from tokenprune.datasets.values import written
from tokenprune.errors import ConfigError

Talk = Literal["conversation", "history", "system"]
Role = Literal["image", "images", "video", "question", "answer", "answers", "choices", "id", "type", Talk]
#: The column of a role, or its columns; None if it has none.
Named = str | tuple[str, ...] | None
#: The columns of every role that a table has.
Columns = dict[Role, tuple[str, ...]]
ROLES: tuple[Role, ...] = get_args(Role)
PICTURES: tuple[Role, ...] = ("image", "images", "video")
ANSWERS: tuple[Role, ...] = ("answers", "answer")
#: Roles that may have several columns: a question in parts, pictures and choices one by one.
#: A column that may hold one choice: "a", "option_b", "choice1".
CHOICE = re.compile(r"((?:option|choice|opt)[ _-]?)?([A-Za-z]|[0-9])", re.I)
SEVERAL: tuple[Role, ...] = ("images", "question", "choices")


def find_columns(table: Table, chosen: Mapping[Role, Named]) -> Columns:
    """The columns of every role that the table has. A role's own name is its default column.

    Choices are also found in columns A, B, C ..., if there is no column ``choices``.

    Args:
        table: The table.
        chosen: The columns that the user named; None where a role shall have no column.

    Raises:
        ConfigError: A named column does not exist, no column holds pictures or videos, a role with one column has
            several, columns with letters for names stand in another order, or choices may stand in ``options``.
    """
    named = {role: (column,) if isinstance(column, str) else column for role, column in chosen.items()}
    for role, columns in named.items():
        _check(table, role, columns or ())
    likely = _likely_choices(table) if "choices" not in (*named, *table.columns) else ()
    if likely:
        what = f"columns: {table.name} has no column 'choices', but {', '.join(map(repr, likely))}"
        meant = likely[0] if len(likely) == 1 else f"[{', '.join(likely)}]"
        raise ConfigError(what, f"write columns: {{choices: {meant}}}, or {{choices: null}} to ask without choices")
    found: Columns = {}
    for role in ROLES:
        columns = named.get(role, (role,))
        if role not in named and role == "choices" and role not in table.columns:
            columns = _lettered(table)
        if columns and all(column in table.columns for column in columns):
            found[role] = columns
    if not any(role in found for role in PICTURES):
        what = f"columns: {table.name} has no column 'image', 'images' or 'video'"
        raise ConfigError(what, f"write columns: {{image: NAME}}; {near('image', table)}")
    return found


def _check(table: Table, role: Role, columns: tuple[str, ...]) -> None:
    """Check the columns that a user named for a role.

    Raises:
        ConfigError: One does not exist, there are too many, or their letters are not those of their places.
    """
    for column in columns:
        if column not in table.columns:
            raise ConfigError(f"columns: {table.name} has no column {column!r} ({role})", near(column, table))
    if len(columns) > 1 and role not in SEVERAL:
        what = f"columns: {role} has the columns {', '.join(columns)}, and only {', '.join(SEVERAL)} take several"
        raise ConfigError(what, "name one")
    lettered = role == "choices" and len(columns) > 1 and set(columns) <= set(string.ascii_uppercase)
    letters = tuple(string.ascii_uppercase[: len(columns)])
    if lettered and columns != letters:
        what = f"columns: choices in the columns {', '.join(columns)} would have the letters {', '.join(letters)}"
        raise ConfigError(what, f"write columns: {{choices: [{', '.join(letters)}]}}: a letter belongs to its column")


def _lettered(table: Table) -> tuple[str, ...]:
    """The columns A, B, C ... of a table, without a gap; none if there is no B."""
    letters = string.ascii_uppercase
    count = next(place for place, letter in enumerate((*letters, "")) if letter not in table.columns)
    return tuple(letters[:count]) if count > 1 else ()


def _likely_choices(table: Table) -> tuple[str, ...]:
    """Columns that may hold choices, and are not those that are read without being asked for."""
    lettered = _lettered(table)
    groups: dict[str, list[str]] = {}
    for column in table.columns:
        found = CHOICE.fullmatch(column)
        if found and column not in lettered:
            groups.setdefault((found[1] or "").lower(), []).append(column)
    if lettered and "" in groups:  # A, B and D
        return tuple(column for column in table.columns if column in (*lettered, *groups[""]))
    if "options" in table.columns:
        return ("options",)
    return next((tuple(columns) for columns in groups.values() if len(columns) > 1), ()) if not lettered else ()


def values(table: Table, columns: tuple[str, ...]) -> Iterator[object]:
    """What :func:`value` gives, of all rows."""
    parts = [table.values(column) for column in columns]
    return parts[0] if len(parts) == 1 else ([_part(cell) for cell in row] for row in zip(*parts, strict=True))


def value(row: Mapping[str, object], columns: tuple[str, ...]) -> object:
    """The value of a role in a row: that of its column, or a list of those of its columns; None without a column."""
    if len(columns) > 1:
        return [_part(row.get(column)) for column in columns]
    return row.get(columns[0]) if columns else None


def _part(cell: object) -> object:
    """A cell of one of several columns: "nan" is what exports, as those of MMBench, made of a missing one."""
    return None if cell == "nan" else cell


def near(name: str, table: Table) -> str:
    """The hint of a wrong column: similar names, if any, and all names."""
    similar = difflib.get_close_matches(name, table.columns, n=2, cutoff=0.6)
    listing = ", ".join(table.columns)
    return f"did you mean {' or '.join(map(repr, similar))}? (it has: {listing})" if similar else f"it has: {listing}"


def misspelt(role: Role, table: Table) -> str | None:
    """A column whose name looks like a misspelt role, if there is one."""
    return next(iter(difflib.get_close_matches(role, table.columns, n=1, cutoff=0.8)), None)


def row_id(table: Table, index: int, given: object) -> str:
    """The id of a row: its own, or that of its place where it has none."""
    name = written(given)
    return (str(given).strip() if name is None else name) or table.row_id(index)


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
    for index, given in enumerate(table.values(column)):
        name = row_id(table, index, given)
        if hash(name) in twice and first.setdefault(name, index) != index:
            raise ConfigError(
                f"{table.where(first[name])} and {table.unit} {table.number(index)} have the same id {name!r}",
                "make ids unique, or write columns: {id: null} to number the rows",
            )
