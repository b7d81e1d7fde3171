"""Where the elements of the lists in a JSON file lie, found without holding the file in memory."""

from __future__ import annotations

import mmap
import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path

from tokenprune.datasets.text_table import BOM

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
