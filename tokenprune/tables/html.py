"""Tables in HTML, for notebooks. The page of a report shows the same tables with its own style."""

from base64 import b64encode
from html import escape

from tokenprune.tables.table import Cell, Heading, Table

#: Styles stand at the elements: a notebook keeps no style sheet.
LEFT, RIGHT = "text-align: left", "text-align: right; white-space: nowrap"
FIGURE = "max-width: 100%; height: auto; background: white"


def table_html(table: Table) -> str:
    """A table as one element, with its title as its caption and its note below."""
    head = "".join(f'<th style="{_side(column)}">{escape(column.title)}</th>' for column in table.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row.cells, table.columns))}</tr>" for row in table.rows)
    caption = f'<caption style="{LEFT}; caption-side: top; font-weight: bold">{escape(table.title)}</caption>'
    note = f"<p>{escape(table.note.replace('**', ''))}</p>" if table.note else ""
    table_alone = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div style="overflow-x: auto">{table_alone}</div>{note}'  # a wide table scrolls, and nothing beside it


def _cell(cell: Cell, column: Heading) -> str:
    text = escape(cell.text)
    return f'<td style="{_side(column)}">{f"<strong>{text}</strong>" if cell.strong and text else text}</td>'


def _side(column: Heading) -> str:
    return LEFT if column.kind == "text" else RIGHT


def parts_html(*parts: Table | str | bytes) -> str:
    """What an object shows in a notebook, as one element that holds everything: nothing is loaded.

    Args:
        parts: Tables, sentences (marks of Markdown are left out) and pictures, the bytes of PNG files.
    """
    return f"<div>{''.join(map(_part, parts))}</div>"


def _part(part: Table | str | bytes) -> str:
    if isinstance(part, Table):
        return table_html(part)
    if isinstance(part, str):
        return f'<p style="white-space: pre-line">{escape(part.replace("**", "").replace("`", ""))}</p>'
    return picture_html(part, "a chart of the numbers in the table")


def picture_html(png: bytes, words: str) -> str:
    """A picture inside the page.

    Args:
        png: The bytes of its file.
        words: What it shows, for readers who do not see it.
    """
    data = b64encode(png).decode("ascii")
    return f'<img style="{FIGURE}" alt="{escape(words)}" src="data:image/png;base64,{data}">'
