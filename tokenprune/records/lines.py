"""Tables in text files: an index of byte offsets, so that any row is read without those before it."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tokenprune.records.base import Table

BOM = b"\xef\xbb\xbf"


@dataclass
class LineIndex:
    """Where the rows of a text file begin: 16 bytes a row.

    Attributes:
        starts: The byte offset of each row.
        numbers: The number of its first line, from 1.
    """

    starts: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[int] = field(default_factory=lambda: array("q"))

    def add(self, start: int, number: int) -> None:
        """Append a row."""
        self.starts.append(start)
        self.numbers.append(number)

    def __len__(self) -> int:
        return len(self.starts)


class TextTable(Table):
    """A table in a text file. Its makers add the rows to the index.

    Args:
        path: The file.
    """

    unit = "line"
    names_files = True

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.folder = path.parent
        self.path = path
        self.index = LineIndex()

    def __len__(self) -> int:
        return len(self.index)

    def number(self, index: int) -> int:
        """The number of the row's first line."""
        return self.index.numbers[index]


def lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, byte offset, bytes) of every line of a file; a byte order mark is passed over."""
    with path.open("rb") as file:
        start = 0
        for number, line in enumerate(file, 1):
            skipped = len(BOM) if number == 1 and line.startswith(BOM) else 0
            yield number, start + skipped, line[skipped:]
            start += len(line)
