"""A filled table: what every renderer reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

#: How a column is shown and sorted: words, a mean with its interval, or a number.
Kind = Literal["text", "interval", "number"]


@dataclass(frozen=True)
class Heading:
    """The heading of a column.

    Attributes:
        title: Its text, with the unit.
        kind: How the cells below are shown and sorted. Words stand at the left, numbers at the right.
        paper: Whether tables for papers have the column.
        rank: Where a table is too wide for a terminal, the columns of the largest rank leave first; those of rank 0
            stay.
    """

    title: str
    kind: Kind = "text"
    paper: bool = False
    rank: int = 0


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: Its text.
        value: The number that it is sorted by; NaN sorts last in both directions. None sorts by the text.
        strong: Whether it is set in bold.
    """

    text: str
    value: float | None = None
    strong: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        cells: One per column.
        method: The method that the row is about; its name in the charts. Empty for none.
        budget: The budget that the row is about; empty for none.
    """

    cells: tuple[Cell, ...]
    method: str = ""
    budget: str = ""


@dataclass(frozen=True)
class Table:
    """A table with its title.

    Attributes:
        title: The title.
        columns: The headings of the columns.
        rows: The rows, each with a cell per column.
        note: Whatever a reader must know about it, or empty.
    """

    title: str
    columns: tuple[Heading, ...]
    rows: tuple[Row, ...]
    note: str = ""

    @classmethod
    def of_texts(cls, title: str, columns: Sequence[Heading], rows: Iterable[Sequence[str]]) -> Table:
        """A table of texts; a row that is too short has empty cells at its end."""
        cells = (tuple(Cell(text) for text in row) for row in rows)
        return cls(title, tuple(columns), tuple(Row(row + (Cell(""),) * (len(columns) - len(row))) for row in cells))
