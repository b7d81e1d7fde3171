"""Rows of cells in the lines of a CSV file, by RFC 4180.

The module csv of Python refuses cells above 131,072 characters, as pictures in base64 have, unless a limit of the whole
process is raised.
"""

from __future__ import annotations

from collections.abc import Iterator

QUOTE = b'"'
ENDS = b"\r\n"


def read_row(lines: Iterator[bytes], delimiter: bytes) -> list[bytes] | None:
    """The cells of the next row, which takes several lines where line breaks are quoted.

    Args:
        lines: The lines, each with its end; as many are taken as the row has.
        delimiter: The byte between cells.

    Returns:
        The cells; none for an empty line, and None behind the last line.

    Raises:
        ValueError: A quote is not closed, or something follows the quote that closes a cell.
    """
    line = next(lines, None)
    if line is None:
        return None
    if QUOTE not in line:  # nearly all rows
        text = line.rstrip(ENDS)
        return plain(text).split(delimiter) if text else []
    cells, at = [], 0
    while True:
        if line.startswith(QUOTE, at):
            cell, line, at = quoted(line, at + 1, lines)
            if line[at : at + 1] not in (delimiter, b"\r", b"\n", b""):
                raise ValueError(f"{chr(line[at])!r} follows the quote that ends a cell")
        else:
            end = line.find(delimiter, at)
            end = len(line.rstrip(ENDS)) if end < 0 else end
            cell, at = plain(line[at:end]), end
        cells.append(cell)
        if line[at : at + 1] != delimiter:
            return cells
        at += 1


def quoted(line: bytes, at: int, lines: Iterator[bytes]) -> tuple[bytes, bytes, int]:
    """The rest of a quoted cell that starts at a place in a line: its text, the line in which it ends, and where."""
    parts = []
    while True:
        end = line.find(QUOTE, at)
        if end < 0:  # the cell goes on in the next line
            parts.append(line[at:])
            following = next(lines, None)
            if following is None:
                raise ValueError("a quote is not closed")
            line, at = following, 0
        elif line.startswith(QUOTE, end + 1):
            parts.append(line[at : end + 1])
            at = end + 2
        else:
            parts.append(line[at:end])
            return b"".join(parts), line, end + 1


def plain(cell: bytes) -> bytes:
    """A cell without quotes as it is.

    Raises:
        ValueError: It holds a carriage return, which ended lines in old files.
    """
    if b"\r" in cell:
        raise ValueError("a line ends with a carriage return alone")
    return cell
