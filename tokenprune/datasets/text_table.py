"""Tables in text files: an index of byte offsets, so that any row is read without those before it."""

from array import array
from collections.abc import Iterator
from pathlib import Path

from tokenprune.datasets.base import Table
from tokenprune.errors import ConfigError

BOM = b"\xef\xbb\xbf"


class TextTable(Table):
    """A table in a text file. Subclasses call :meth:`add` for every row, which takes 16 bytes.

    Args:
        path: The file.

    Raises:
        ConfigError: It is not written in UTF-8.
    """

    unit = "line"
    names_files = True

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.folder = path.parent
        self.path = path
        check_encoding(path)
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


def check_encoding(path: Path) -> None:
    """Refuse a file in UTF-16, which spreadsheets and PowerShell write: no line of it could be read.

    Raises:
        ConfigError: The file begins like UTF-16, or with other bytes that no text has.
    """
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head:
        what = f"data: {path} is not UTF-8, but UTF-16 or no text"
        command = f"iconv -f UTF-16 -t UTF-8 {path.name} > utf8{path.suffix}"
        raise ConfigError(what, f"save it as UTF-8, e.g. with `{command}`")


def lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, byte offset, bytes) of every line of a file; a byte order mark is passed over."""
    with path.open("rb") as file:
        start = 0
        for number, line in enumerate(file, 1):
            skipped = len(BOM) if number == 1 and line.startswith(BOM) else 0
            yield number, start + skipped, line[skipped:]
            start += len(line)
