"""Tables in text files: an index of byte offsets, so that any row is read without those before it."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

from tokenprune.datasets.base import Table

BOM = b"\xef\xbb\xbf"


class TextTable(Table):
    """A table in a text file. Subclasses call :meth:`add` for every row, which takes 16 bytes.

    Args:
        path: The file.
    """

    unit = "line"
    names_files = True

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.folder = path.parent
        self.path = path
        self.starts = array("q")
        self._numbers = array("q")

    def add(self, start: int, number: int) -> None:
        """Append a row: the byte offset at which it starts, and the number of its first line, from 1."""
        self.starts.append(start)
        self._numbers.append(number)

    def __len__(self) -> int:
        return len(self.starts)

    def number(self, index: int) -> int:
        """The number of the row's first line."""
        return self._numbers[index]


def lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, byte offset, bytes) of every line of a file; a byte order mark is passed over."""
    with path.open("rb") as file:
        start = 0
        for number, line in enumerate(file, 1):
            skipped = len(BOM) if number == 1 and line.startswith(BOM) else 0
            yield number, start + skipped, line[skipped:]
            start += len(line)
