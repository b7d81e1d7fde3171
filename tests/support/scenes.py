"""Figures that were saved, as marks at places in pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import pytest
import vl_convert

Item = dict[str, Any]


def marks(spec: object, kind: str, role: str = "mark") -> list[Item]:
    """The marks of a kind of a figure (``symbol``, ``text``, ``rule``, ``line`` ...), with places within the figure.

    A line is an item per point.
    """
    scene = vl_convert.vegalite_to_scenegraph(spec, show_warnings=True)
    return list(_walk(scene["scenegraph"], kind, role, 0.0, 0.0))


def _walk(node: Any, kind: str, role: str, left: float, top: float) -> Iterator[Item]:
    for item in node.get("items", ()):
        x, y = left + item.get("x", 0), top + item.get("y", 0)
        if node.get("marktype") == kind and node["role"] == role:
            moved = {key: at + item[key] for key, at in (("x2", left), ("y2", top)) if key in item}
            yield {**item, "x": x, "y": y, **moved}
        for child in item.get("items", ()):
            yield from _walk(child, kind, role, x, y)


def panels(spec: object) -> list[Item]:
    """The boxes of the panels of a figure."""
    return [item for item in marks(spec, "group", "scope") if "fill" in item]


def within(panel: Item, items: Iterable[Item]) -> list[Item]:
    """The marks that lie in a panel, from side to side."""
    return [item for item in items if 0 <= item["x"] - panel["x"] <= panel["width"] and _height(panel, item)]


def beside(panel: Item, items: Iterable[Item]) -> list[Item]:
    """The marks right of a panel, before the next one."""
    return [item for item in items if panel["width"] < item["x"] - panel["x"] < panel["width"] + 40]


def _height(panel: Item, item: Item) -> bool:
    return -1 <= item["y"] - panel["y"] <= float(panel["height"]) + 1


def overlapping(texts: Iterable[Item]) -> list[tuple[str, str]]:
    """Pairs of texts, aligned at one side, whose boxes overlap. A box is as high as the font's size."""
    pairs = combinations(texts, 2)
    return [
        (str(one["text"]), str(other["text"]))
        for one, other in pairs
        if abs(one["y"] - other["y"]) < one["fontSize"] and abs(one["x"] - other["x"]) < one["fontSize"]
    ]


@contextmanager
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The specifications of the figures that are saved inside the block."""
    found: list[Any] = []
    convert = vl_convert.vegalite_to_svg

    def noted(spec: Any, **options: Any) -> str:
        found.append(spec)
        return str(convert(spec, **options))

    with monkeypatch.context() as patch:
        patch.setattr(vl_convert, "vegalite_to_svg", noted)
        yield found
