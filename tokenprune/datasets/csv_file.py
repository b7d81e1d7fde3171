"""CSV and TSV by RFC 4180, also with line breaks inside quotes.

The module csv of Python refuses cells above 131,072 characters, as pictures in base64 have, unless a limit of the whole
process is raised.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tokenprune.datasets.text_table import TextTable, lines
from tokenprune.errors import ConfigError, SampleError

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


WHOLE = re.compile(rb"-?[0-9]+\.0")
SEPARATOR = "|"  # between the entries of a cell that is a list


class CsvFile(TextTable):
    """A file whose first line names the columns, in UTF-8, separated by commas, semicolons or tabs.

    A cell of ``images``, ``answers`` or ``choices`` holds entries separated by ``|``, unless it is a list in JSON's
    or Python's form (:func:`tokenprune.datasets.lists.entries`).

    A column whose cells all end in ``.0`` holds integers.

    Raises:
        ConfigError: A quote is not closed, a column is named twice, or the file is no CSV in another way.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._delimiter = delimiter(path)
        self.columns = ()
        self._whole: dict[int, bool] = {}
        for number, start, cells in self._scan():
            if not self.columns:
                self.columns = tuple(self._decode(cell.strip(), f"{self.name}, line {number}") for cell in cells)
                self._whole = dict.fromkeys(range(len(self.columns)), False)
            elif cells:
                self.add(start, number)
                self._keep_whole(cells)
        twice = {column for column in self.columns if self.columns.count(column) > 1}
        if twice:
            raise ConfigError(f"{self.name} names the column {min(twice)!r} twice", "rename one of them")

    def row(self, index: int) -> Mapping[str, object]:
        """The cells of one row."""
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            cells = read_row(iter(file), self._delimiter) or []
        where = self.where(index)
        if len(cells) != len(self.columns):
            what = f"{where}: {len(cells)} cells, but {len(self.columns)} columns"
            raise SampleError(what, 'put a cell that holds a separator between quotes: "a, b"')
        return {name: self._decode(self._cell(cells, at), where) for at, name in enumerate(self.columns)}

    def values(self, column: str) -> Iterator[object]:
        """One column's cells of all rows."""
        place = self.columns.index(column)
        rows = (cells for number, _, cells in self._scan() if cells)
        next(rows)  # the names
        for cells in rows:
            yield self._cell(cells, place).decode("utf-8", "replace") if place < len(cells) else None

    def items(self, value: object) -> Sequence[object]:
        """The entries of a cell; an empty one between separators is missing, and keeps its place."""
        cell = str(value or "").strip()
        return [entry.strip() for entry in cell.split(SEPARATOR)] if cell else []

    def _keep_whole(self, cells: Sequence[bytes]) -> None:
        """Keep the columns that hold nothing but whole numbers with ``.0``, and empty cells.

        They were columns of integers: an export writes them so if a value is missing.
        """
        for place in tuple(self._whole):
            cell = cells[place].strip() if place < len(cells) else b""
            if WHOLE.fullmatch(cell):
                self._whole[place] = True
            elif cell:
                del self._whole[place]

    def _cell(self, cells: Sequence[bytes], place: int) -> bytes:
        """A cell; without the ``.0`` in a column of integers that an export made floats."""
        return cells[place].strip().removesuffix(b".0") if self._whole.get(place) else cells[place]

    def _scan(self) -> Iterator[tuple[int, int, list[bytes]]]:
        """(number of the first line, byte offset, cells) of every row.

        Separators and quotes are the same bytes in UTF-8, and a cell that is not UTF-8 is that row's error.
        """
        following = [1, 0]  # number and offset of the line that comes next

        def texts() -> Iterator[bytes]:
            for number, start, line in lines(self.path):
                following[:] = number + 1, start + len(line)
                yield line

        number, start = 1, next((start for _, start, _ in lines(self.path)), 0)
        taken = texts()
        while True:
            try:
                cells = read_row(taken, self._delimiter)
            except ValueError as error:
                what = f"{self.name}, line {number}: the row that begins here is no CSV ({error})"
                fix = 'close quotes, double those inside quotes ("say ""hi"""), and end lines with a line feed'
                raise ConfigError(what, fix) from error
            if cells is None:
                return
            yield number, start, cells
            number, start = following

    def _decode(self, cell: bytes, where: str) -> str:
        try:
            return cell.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SampleError(f"{where}: not UTF-8 ({error.reason})", "save the file as UTF-8") from error


def delimiter(path: Path) -> bytes:
    """The byte between cells: a tab in TSV; otherwise a comma, or a semicolon if the first line has no comma."""
    if path.suffix.lower() == ".tsv":
        return b"\t"
    names = next((line for _, _, line in lines(path)), b"")
    return b";" if b";" in names and b"," not in names else b","
