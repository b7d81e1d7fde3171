"""JSON files: a list of objects, alone or as the only such list in an object; or JSON Lines under another name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenprune.datasets.base import Table
from tokenprune.datasets.json_layout import LIST, OBJECT, Elements, find_layout
from tokenprune.datasets.jsonl import JsonLines, lenient, parse
from tokenprune.datasets.text_table import check_encoding
from tokenprune.errors import ConfigError, SampleError

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
