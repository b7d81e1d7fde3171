"""JSON files: a list of objects, alone or as the only such list in an object; or JSON Lines under another name."""

from __future__ import annotations

import mmap
import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tokenprune.datasets.base import Table
from tokenprune.datasets.jsonl import JsonLines, lenient, parse
from tokenprune.datasets.text_table import BOM, check_encoding
from tokenprune.errors import ConfigError, SampleError

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


FORM = "write a list of objects, or one object per line"


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
    raise ConfigError(f"data: {path} holds {what}", f"{FORM}, in a file of its own" if found else FORM)


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
            raise ConfigError(f"data: the list in {path} holds no object with names", FORM)

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
            raise SampleError(f"{self.where(index)}: broken JSON ({error})", FORM) from error

    def values(self, column: str) -> Iterator[object]:
        """One field's values of all objects."""
        return (lenient(data).get(column) for data in self._all())

    def _all(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            for start, end in zip(self._elements.starts, self._elements.ends, strict=True):
                file.seek(start)
                yield file.read(end - start)
