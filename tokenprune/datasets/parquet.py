"""Parquet, through pyarrow."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from tokenprune.core.optional import optional
from tokenprune.datasets.base import Table
from tokenprune.errors import ConfigError

BATCH = 1024  # rows of a single column that are read at once


class Parquet(Table):
    """A Parquet file. One row group is held at a time.

    Raises:
        ConfigError: The file is no Parquet.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.folder = path.parent
        self._path = path
        with self._open() as file:
            self.columns = tuple(file.schema_arrow.names)
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._ends = list(accumulate(sizes))
        self._held: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def row(self, index: int) -> Mapping[str, object]:
        """The values of one row."""
        group = bisect_right(self._ends, index)
        if self._held[0] != group:
            self._held = (-1, None)  # let go of the last group before the next one is read
            with self._open() as file:
                self._held = (group, file.read_row_group(group))
        rows = self._held[1]
        first = self._ends[group] - rows.num_rows
        values: dict[str, object] = rows.slice(index - first, 1).to_pylist()[0]
        return values

    def values(self, column: str) -> Iterator[object]:
        """One column's values of all rows."""
        with self._open() as file:
            for batch in file.iter_batches(batch_size=BATCH, columns=[column]):
                yield from batch.column(0).to_pylist()

    def _open(self) -> Any:
        pyarrow = optional("pyarrow", "reading Parquet")
        parquet = optional("pyarrow.parquet", "reading Parquet")
        try:
            return parquet.ParquetFile(self._path)
        except pyarrow.ArrowException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{self.name} is no Parquet file ({reason})", "write it again, or use JSONL") from error
