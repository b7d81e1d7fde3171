"""Tables as lines of text."""

from __future__ import annotations

from rich.cells import cell_len

from tokenprune.tables.table import Kind, Table


def lines(table: Table) -> list[str]:
    """The headings and the rows of a table, words at the left and numbers at the right of their columns."""
    headings = [heading.title for heading in table.columns]
    rows = [headings, *([" ".join(cell.text.split()) for cell in row.cells] for row in table.rows)]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    kinds = [heading.kind for heading in table.columns]
    return ["  ".join(map(_aligned, row, widths, kinds)).rstrip() for row in rows]


def _aligned(text: str, width: int, kind: Kind) -> str:
    free = " " * (width - cell_len(text))
    return text + free if kind == "text" else free + text
