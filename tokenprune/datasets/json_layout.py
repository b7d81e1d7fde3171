"""Where the elements of the lists in a JSON file lie, found without holding the file in memory."""

from __future__ import annotations

import mmap
import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path

from tokenprune.datasets.text_table import BOM

#: A string, a bracket, a comma, or a number or word. A string that does not end is a single quote.
TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}"]|[^\s\[\]{},:"]+', re.S)
OPEN, CLOSE = b"[{", b"]}"
LIST, OBJECT, QUOTE = ord("["), ord("{"), ord('"')


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
        several: Whether more values follow, as in JSON Lines; they are not looked at.
        lists: The list that the value is (its name is empty), or the lists that it holds by their names.
        end: Where the first value ends; 0 if it does not end.
    """

    first: int = 0
    several: bool = False
    lists: dict[str, Elements] = field(default_factory=dict)
    end: int = 0


def find_layout(path: Path) -> Layout:
    """Read a file once for the places of its elements, 16 bytes for each. Brackets alone are followed."""
    if path.stat().st_size == 0:
        return Layout()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return Scan(data).layout


class Scan:
    """Follows the brackets of a JSON text.

    Args:
        data: The text.

    Attributes:
        layout: What was found.
    """

    def __init__(self, data: mmap.mmap) -> None:
        self.layout = Layout()
        self._depth = 0
        self._name = ""  # of the value of the first object that comes next
        self._list: Elements | None = None  # the list whose elements are noted
        self._level = 0  # the depth of its elements
        self._start = 0  # of the element that is open
        for match in TOKEN.finditer(data, len(BOM) if data[: len(BOM)] == BOM else 0):
            if self._depth == 0 and self.layout.first:
                self.layout.several = True
                return
            start, end = match.span()
            if end - start == 1 and data[start] == QUOTE:
                return
            self._take(data[start], start, end, data)

    def _take(self, first: int, start: int, end: int, data: mmap.mmap) -> None:
        """Follow one token."""
        self.layout.first = self.layout.first or first
        if first in CLOSE:
            self._depth -= 1
            if self._list is not None and self._depth == self._level:
                self._list.add(self._start, end, data[self._start])
            elif self._depth < self._level:
                self._list = None
        elif self._list is not None and self._depth == self._level:
            if first in OPEN:
                self._start = start
            else:
                self._list.add(start, end, first)
        elif first == LIST and self._depth == (self.layout.first == OBJECT):
            self._list = self.layout.lists.setdefault(self._name, Elements())
            self._level = self._depth + 1
        elif self._depth == 1:
            self._name = data[start + 1 : end - 1].decode("utf-8", "replace")
        self._depth += first in OPEN
        if self._depth == 0:
            self.layout.end = end
