"""Tables in Markdown."""

from collections.abc import Iterable

from tokenprune.tables.table import Cell, Table


def lines(table: Table) -> list[str]:
    """A table in Markdown, line by line; its title and its note are left to the caller."""
    rule = ("---" if heading.kind == "text" else "---:" for heading in table.columns)
    return [
        _line(escaped(heading.title) for heading in table.columns),
        "|" + "|".join(rule) + "|",
        *(_line(map(_cell, row.cells)) for row in table.rows),
    ]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(cell: Cell) -> str:
    return f"**{escaped(cell.text)}**" if cell.strong and cell.text else escaped(cell.text)


def escaped(text: str) -> str:
    """A text that stays in one cell."""
    return " ".join(text.split()).replace("|", "\\|")
