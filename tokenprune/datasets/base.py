"""The contract of a table: rows that are read when they are asked for."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType


class Table(ABC):
    """Rows of named values. A table knows where its rows are and holds at most one block of them.

    Attributes:
        name: Its name in messages: the path or name that the user gave.
        columns: The names of all columns.
        folder: Where relative paths in its rows start.
        unit: The word for a row in messages: ``line`` or ``row``.
        made: Column -> the column from which its values are made.
        names_files: Whether its rows name picture files, and never hold the pictures themselves.
    """

    name: str
    columns: tuple[str, ...]
    folder: Path
    unit: str = "row"
    made: Mapping[str, str] = MappingProxyType({})
    names_files: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """The number of rows."""

    @abstractmethod
    def row(self, index: int) -> Mapping[str, object]:
        """The values of a row by column; a column that the row lacks is left out or None.

        Raises:
            SampleError: The row cannot be read.
        """

    @abstractmethod
    def values(self, column: str) -> Iterator[object]:
        """One column's values of all rows, in order; None for a row that cannot be read."""

    def number(self, index: int) -> int:
        """The number of a row as an editor counts it, from 1."""
        return index + 1

    def where(self, index: int) -> str:
        """The place of a row, for messages."""
        return f"{self.name}, {self.unit} {self.number(index)}"

    def row_id(self, index: int) -> str:
        """The id of a row that names none."""
        return f"{self.unit}-{self.number(index)}"

    def items(self, value: object) -> Sequence[object]:
        """The entries of a value that may be a list."""
        return value if isinstance(value, (list, tuple)) else [value]
