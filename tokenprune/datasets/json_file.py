"""JSON Lines, and JSON files: a list of objects, alone or as the only such list in an object."""

from __future__ import annotations

import json
import mmap
import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenprune.datasets.base import Table
from tokenprune.datasets.text_table import BOM, TextTable, check_encoding, lines
from tokenprune.errors import ConfigError, SampleError

LINES = "write one JSON object per line, in UTF-8; a file with one list of objects is named .json"
ONE_LIST = "write a list of objects, or one object per line"


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
            raise ConfigError(f"data: no line of {self.name} can be used; the first: {self._problem()}", LINES)

    def row(self, index: int) -> Mapping[str, object]:
        """The object of one line."""
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            line = file.readline()
        try:
            return parse(line)
        except ValueError as error:
            raise SampleError(f"{self.where(index)}: broken JSON ({error})", LINES) from error

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


#: A string, a bracket, or a number or word. A string that does not end is a single quote.
TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}"]|[^\s\[\]{},:"]+', re.S)
#: All that comes before the next bracket, and the bracket.
TO_BRACKET = re.compile(rb'(?:[^"\[\]{}]++|"[^"\\]*+(?:\\.[^"\\]*+)*+")*+[\[\]{}]', re.S)
OPEN, CLOSE = b"[{", b"]}"
LIST, OBJECT, QUOTE = ord("["), ord("{"), b'"'


@dataclass
class Elements:
    """The elements of one list.

    Attributes:
        starts: The byte offset at which each element starts.
        ends: The byte offset at which it ends.
        objects: Whether all of them are objects.
    """

    starts: array[int] = field(default_factory=lambda: array("q"))
    ends: array[int] = field(default_factory=lambda: array("q"))
    objects: bool = True

    def add(self, start: int, end: int, first: int) -> None:
        """Append an element: its byte offsets and its first byte."""
        self.starts.append(start)
        self.ends.append(end)
        self.objects &= first == OBJECT


@dataclass
class Layout:
    """What a JSON file holds.

    Attributes:
        first: The first byte of its first value; 0 if the file is empty.
        lists: The list that the value is (its name is empty), or the lists that it holds by their names.
        end: Where the value ends; 0 if it does not end.
        several: Whether more values follow, as in JSON Lines; they are not looked at.
    """

    first: int = 0
    lists: dict[str, Elements] = field(default_factory=dict)
    end: int = 0
    several: bool = False


def find_layout(path: Path) -> Layout:
    """Read a file once for the places of its elements, 16 bytes for each. Only brackets and quotes are followed."""
    if path.stat().st_size == 0:
        return Layout()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = TOKEN.search(data, len(BOM) if data[: len(BOM)] == BOM else 0)
        if found is None:
            return Layout()
        layout = Layout(data[found.start()])
        if layout.first == LIST:
            layout.lists[""], layout.end = read_list(data, found.start())
        elif layout.first == OBJECT:
            layout.lists, layout.end = read_object(data, found.start())
        else:
            layout.end = found.end()
        layout.several = bool(layout.end) and TOKEN.search(data, layout.end) is not None
    return layout


def read_list(data: mmap.mmap, start: int) -> tuple[Elements, int]:
    """The elements of the list that starts at a place, and where it ends; 0 if it does not."""
    elements, at = Elements(), start + 1
    while found := TOKEN.search(data, at):
        first = data[found.start()]
        if first in CLOSE:
            return elements, found.end()
        at = value_end(data, found)
        if not at:
            break
        elements.add(found.start(), at, first)
    return elements, 0


def read_object(data: mmap.mmap, start: int) -> tuple[dict[str, Elements], int]:
    """The lists of the object that starts at a place, by their names, and where it ends; 0 if it does not."""
    lists: dict[str, Elements] = {}
    name, at = "", start + 1
    while found := TOKEN.search(data, at):
        first = data[found.start()]
        if first in CLOSE:
            return lists, found.end()
        if first == LIST:
            lists[name], at = read_list(data, found.start())
        else:
            name, at = found.group()[1:-1].decode("utf-8", "replace"), value_end(data, found)
        if not at:
            break
    return lists, 0


def value_end(data: mmap.mmap, found: re.Match[bytes]) -> int:
    """Where the value ends that begins with a token; 0 if it does not."""
    if found.group() == QUOTE:
        return 0
    if found.group() not in (b"[", b"{"):
        return found.end()
    depth, at = 0, found.start()
    while match := TO_BRACKET.match(data, at):
        at = match.end()
        depth += 1 if data[at - 1] in OPEN else -1
        if not depth:
            return at
    return 0


def json_table(path: Path) -> Table:
    """The table of a JSON file.

    Raises:
        ConfigError: It is cut short, not UTF-8, or holds no list of objects or several.
    """
    check_encoding(path)
    layout = find_layout(path)
    if layout.several or not layout.first:
        return JsonLines(path)
    if not layout.end:
        raise ConfigError(f"data: {path} is cut short: a bracket or a quote is not closed", "write it again")
    found = {name: elements for name, elements in layout.lists.items() if elements.objects and len(elements.starts)}
    if layout.first == LIST:
        return JsonList(path, layout.lists[""])
    if len(found) == 1:
        return JsonList(path, *found.values())
    if layout.first == OBJECT and not found and one_line(path, layout.end):
        return JsonLines(path)
    names = ", ".join(map(repr, found))
    what = f"several lists of objects ({names})" if found else "no list of objects"
    raise ConfigError(f"data: {path} holds {what}", f"{ONE_LIST}, in a file of its own" if found else ONE_LIST)


def one_line(path: Path, end: int) -> bool:
    """Whether a value that ends at a byte offset stands on the first line: JSON Lines with a single line."""
    with path.open("rb") as file:
        return len(file.readline(end)) == end


class JsonList(Table):
    """A list of objects in a file. The file is read once for the names of all columns, and then row by row.

    Args:
        path: The file.
        elements: Where the objects lie.
    """

    names_files = True

    def __init__(self, path: Path, elements: Elements) -> None:
        self.name, self.folder = str(path), path.parent
        self._path, self._elements = path, elements
        columns: dict[str, None] = {}
        for data in self._all():
            columns.update(dict.fromkeys(lenient(data)))
        self.columns = tuple(columns)
        if len(self) and not columns:
            raise ConfigError(f"data: the list in {path} holds no object with names", ONE_LIST)

    def __len__(self) -> int:
        return len(self._elements.starts)

    def row(self, index: int) -> Mapping[str, object]:
        """One object."""
        with self._path.open("rb") as file:
            file.seek(self._elements.starts[index])
            data = file.read(self._elements.ends[index] - self._elements.starts[index])
        try:
            return parse(data)
        except ValueError as error:
            raise SampleError(f"{self.where(index)}: broken JSON ({error})", ONE_LIST) from error

    def values(self, column: str) -> Iterator[object]:
        """One field's values of all objects."""
        return (lenient(data).get(column) for data in self._all())

    def _all(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            for start, end in zip(self._elements.starts, self._elements.ends, strict=True):
                file.seek(start)
                yield file.read(end - start)
