"""A column of a table: everything about it in one object."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from tokenprune.stats.estimate import Estimate
from tokenprune.tables.table import Cell, Heading, Kind, Row, Table

Item = TypeVar("Item")
Other = TypeVar("Other")


@dataclass(frozen=True)
class Column(Generic[Item]):
    """A column; an item is whatever a row of the table is about.

    Attributes:
        title: Its heading, with the unit.
        cell: An item -> its cell.
        kind: How cells are aligned and sorted.
        csv: Names in CSV files and in JSON -> the number or text of an item there.
        paper: Whether tables for papers have it.
        rank: How early it leaves a table that is too wide for a terminal; see :class:`Heading`.
    """

    title: str
    cell: Callable[[Item], Cell]
    kind: Kind = "text"
    csv: Mapping[str, Callable[[Item], float | str]] = field(default_factory=dict)
    paper: bool = False
    rank: int = 0

    @property
    def heading(self) -> Heading:
        """Its heading."""
        return Heading(self.title, self.kind, self.paper, self.rank)

    def ranked(self, rank: int) -> Column[Item]:
        """The column, which leaves tables that are too wide the earlier the larger its rank is; with 0 it stays."""
        return replace(self, rank=rank)

    def hidden(self, when: Callable[[Item], bool]) -> Column[Item]:
        """The column with empty cells where something holds; CSV files keep the numbers."""
        return replace(self, cell=lambda item: Cell("", math.nan) if when(item) else self.cell(item))

    def bold(self, when: Callable[[Item], bool]) -> Column[Item]:
        """The column with bold cells where something holds."""
        return replace(self, cell=lambda item: replace(self.cell(item), strong=when(item)))

    def of(self, get: Callable[[Other], Item]) -> Column[Other]:
        """The column for other items, which hold its own."""
        return Column(
            self.title,
            lambda other: self.cell(get(other)),
            self.kind,
            {name: _after(get, number) for name, number in self.csv.items()},
            self.paper,
            self.rank,
        )


def _after(get: Callable[[Other], Item], number: Callable[[Item], float | str]) -> Callable[[Other], float | str]:
    return lambda other: number(get(other))


def text(title: str, get: Callable[[Item], str], csv: str = "") -> Column[Item]:
    """A column of words.

    Args:
        title: Its heading.
        get: An item -> the words.
        csv: Its name in CSV files; empty for none.
    """
    return Column(title, lambda item: Cell(get(item)), "text", {csv: get} if csv else {})


def number(
    title: str,
    get: Callable[[Item], float | None],
    form: str = "{:.1f}",
    *,
    unknown: str = "",
    csv: str = "",
    paper: bool = False,
) -> Column[Item]:
    """A column of numbers.

    Args:
        title: Its heading, with the unit.
        get: An item -> the number, in that unit; None or NaN where unknown.
        form: How it is written, for ``str.format``.
        unknown: The text of an unknown one.
        csv: Its name in CSV files, with the unit; empty for none.
        paper: Whether tables for papers have it.
    """

    def value(item: Item) -> float:
        found = get(item)
        return math.nan if found is None else found

    def cell(item: Item) -> Cell:
        found = value(item)
        return Cell(unknown if math.isnan(found) else form.format(found), found)

    return Column(title, cell, "number", {csv: value} if csv else {}, paper)


def estimate(
    title: str,
    get: Callable[[Item], Estimate | None],
    factor: float = 100,
    most: int = 1,
    *,
    signed: bool = False,
    csv: tuple[str, str] | None = None,
    paper: bool = False,
) -> Column[Item]:
    """A column of means with their intervals, see :meth:`tokenprune.stats.estimate.Estimate.written`.

    Args:
        title: Its heading, with the unit.
        get: An item -> the estimate; None for an empty cell.
        factor: What the numbers are multiplied by, for the unit.
        most: The largest number of decimals.
        signed: Whether positive numbers have a sign.
        csv: Begin and end of its names in CSV files: the quantity and the unit; None for none.
        paper: Whether tables for papers have it.
    """

    def cell(item: Item) -> Cell:
        found = get(item)
        return Cell("", math.nan) if found is None else Cell(found.written(factor, most, signed), factor * found.mean)

    def part(name: str) -> Callable[[Item], float]:
        def end(item: Item) -> float:
            found = get(item)
            return math.nan if found is None else factor * float(getattr(found, name))

        return end

    names = {} if csv is None else {"mean": "{}_{}", "low": "{}_low_{}", "high": "{}_high_{}"}
    return Column(title, cell, "interval", {form.format(*csv or ()): part(name) for name, form in names.items()}, paper)


def fill(
    title: str,
    columns: Sequence[Column[Item]],
    items: Iterable[Item],
    note: str = "",
    about: Callable[[Item], tuple[str, str]] = lambda _: ("", ""),
) -> Table:
    """Fill a table. Columns without any text are left out.

    Args:
        title: Its title.
        columns: Its columns.
        items: One per row.
        note: Whatever a reader must know about it, or empty.
        about: An item -> the method and the budget that it is about, for the page; empty for none.
    """
    rows = [(item, [column.cell(item) for column in columns]) for item in items]
    shown = [place for place in range(len(columns)) if not rows or any(cells[place].text for _, cells in rows)]
    return Table(
        title,
        tuple(columns[place].heading for place in shown),
        tuple(Row(tuple(cells[place] for place in shown), *about(item)) for item, cells in rows),
        note,
    )
