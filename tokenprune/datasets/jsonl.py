"""JSON Lines: one JSON object per line."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenprune.datasets.text_table import TextTable, lines
from tokenprune.errors import ConfigError, SampleError

FIX = "write one JSON object per line, in UTF-8; a file with one list of objects is named .json"


class JsonLines(TextTable):
    """A file with one JSON object per line, in UTF-8. Empty lines are passed over.

    The file is read once to find the lines and all column names. A broken line is an error when it is asked for.

    Raises:
        ConfigError: No line holds an object with names.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        columns: dict[str, None] = {}
        for number, start, line in lines(path):
            if line.strip():
                self.add(start, number)
                columns.update(dict.fromkeys(lenient(line)))
        self.columns = tuple(columns)
        if len(self) and not columns:
            raise ConfigError(f"data: no line of {self.name} can be used; the first: {self._problem()}", FIX)

    def row(self, index: int) -> Mapping[str, object]:
        """The object of one line."""
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            line = file.readline()
        try:
            return parse(line)
        except ValueError as error:
            raise SampleError(f"{self.where(index)}: broken JSON ({error})", FIX) from error

    def _problem(self) -> str:
        try:
            self.row(0)
        except SampleError as error:
            return error.what
        return f"{self.where(0)}: an empty object"

    def values(self, column: str) -> Iterator[object]:
        """One field's values of all lines."""
        return (lenient(line).get(column) for _, _, line in lines(self.path) if line.strip())


def parse(line: bytes) -> dict[str, Any]:
    """The object of a line.

    Raises:
        ValueError: The line is not UTF-8, no JSON, or no object.
    """
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, not an object")
    return value


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        ValueError: A key stands twice: nobody knows which value is meant.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return made


def lenient(line: bytes) -> dict[str, Any]:
    """The object of a line; empty if the line is broken."""
    try:
        return parse(line)
    except ValueError:
        return {}
