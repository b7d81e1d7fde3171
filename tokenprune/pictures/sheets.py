"""Sheets: what is drawn in one panel. A picture, the token grids on it, and the parts that the model did not see."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from tokenprune.adapters.views import View
from tokenprune.pictures.look import Look

Box = tuple[float, float, float, float]

#: Views whose cells are so much larger than those of the finest view of a picture are its overview.
COARSER = 1.5
TOUCH = 1e-6


@dataclass(frozen=True)
class Sheet:
    """A picture with token grids that do not overlap.

    Attributes:
        picture: Number of the picture.
        views: Numbers of the views.
        extent: Left, top, right and bottom in shares of the picture: the picture, and views that reach beyond it.
        aspect: Width divided by height.
        title: What the sheet is, where the sample has several; else empty.
        small: Whether it is an overview beside a finer sheet of the same picture.
    """

    picture: int
    views: tuple[int, ...]
    extent: Box
    aspect: float
    title: str = ""
    small: bool = False


def sheets(look: Look) -> list[Sheet]:
    """The sheets of a look, picture by picture; the finest one of a picture first, its overviews after it."""
    numbers = sorted({view.picture for view in look.views})
    made: list[Sheet] = []
    for number in numbers:
        groups: list[list[int]] = []
        for index, view in enumerate(look.views):
            if view.picture == number:
                _add(look, groups, index, view)
        areas = [min(_cell(look.views[index]) for index in group) for group in groups]
        for place in sorted(range(len(groups)), key=lambda place: (areas[place], place)):
            group = groups[place]
            title = _title(look, group, number, len(numbers) > 1, len(groups) > 1)
            small = areas[place] > COARSER * min(areas)
            extent = _extent(look, group)
            made.append(Sheet(number, tuple(group), extent, _aspect(look, group, extent), title, small))
    return made


def unseen(views: list[View]) -> list[Box]:
    """The parts of a picture that no view covers, as boxes in shares of the picture that do not overlap."""
    xs = sorted({0.0, 1.0, *(min(max(edge, 0.0), 1.0) for view in views for edge in view.box[::2])})
    ys = sorted({0.0, 1.0, *(min(max(edge, 0.0), 1.0) for view in views for edge in view.box[1::2])})
    boxes: list[Box] = []
    for top, bottom in itertools.pairwise(ys):
        row: list[Box] = []
        for left, right in itertools.pairwise(xs):
            x, y = (left + right) / 2, (top + bottom) / 2
            if (right - left) < TOUCH or (bottom - top) < TOUCH:
                continue
            if any(view.box[0] < x < view.box[2] and view.box[1] < y < view.box[3] for view in views):
                continue
            if row and abs(row[-1][2] - left) < TOUCH:
                row[-1] = (row[-1][0], top, right, bottom)
            else:
                row.append((left, top, right, bottom))
        boxes += row
    return boxes


def _add(look: Look, groups: list[list[int]], index: int, view: View) -> None:
    for group in groups:
        others = [look.views[other] for other in group]
        if others[0].title == view.title and not any(_overlap(view.box, other.box) for other in others):
            group.append(index)
            return
    groups.append([index])


def _overlap(one: Box, other: Box) -> bool:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    # neighbouring tiles may share a sliver: their edges are rounded to pixels
    return width > 0.02 * (one[2] - one[0]) and height > 0.02 * (one[3] - one[1])


def _cell(view: View) -> float:
    """Area of a cell as a share of the picture."""
    left, top, right, bottom = view.box
    return (right - left) * (bottom - top) / (view.rows * view.columns)


def _extent(look: Look, group: list[int]) -> Box:
    boxes = [(0.0, 0.0, 1.0, 1.0), *(look.views[index].box for index in group)]
    return (
        min(box[0] for box in boxes),
        min(box[1] for box in boxes),
        max(box[2] for box in boxes),
        max(box[3] for box in boxes),
    )


def _aspect(look: Look, group: list[int], extent: Box) -> float:
    """Width by height of the sheet. Without the picture, cells are square."""
    view = look.views[group[0]]
    if look.pictures:
        height, width = look.pictures[view.picture].shape[:2]
        shape = float(width / height)
    else:
        left, top, right, bottom = view.box
        shape = (view.columns / (right - left)) / (view.rows / (bottom - top))
    return shape * (extent[2] - extent[0]) / (extent[3] - extent[1])


def _title(look: Look, group: list[int], number: int, several: bool, overlapping: bool) -> str:
    title = look.views[group[0]].title
    words = [str(number + 1)] if several else []
    if title and (overlapping or several):
        words.append(title)
    return " ".join(words)
