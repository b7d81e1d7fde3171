"""Sheets, one per panel: a picture, the token grids on it, and the parts that the model did not see."""

import itertools
from dataclasses import dataclass
from functools import cached_property

from tokenprune.adapters.views import WHOLE, Box, View
from tokenprune.pictures.look import Look

#: Views whose cells are so much larger than those of the finest view of a picture are its overview.
COARSER = 1.5
TOUCH = 1e-6


@dataclass(frozen=True, eq=False)
class Sheet:
    """A picture with token grids that do not overlap.

    Attributes:
        look: The look.
        numbers: Numbers of the look's views on the sheet, which are on one picture.
        title: A name, where the sample has several sheets; else empty.
        small: Whether it is an overview beside a finer sheet of the same picture.
    """

    look: Look
    numbers: tuple[int, ...]
    title: str = ""
    small: bool = False

    @property
    def views(self) -> list[View]:
        """The token grids."""
        return [self.look.views[number] for number in self.numbers]

    @property
    def picture(self) -> int:
        """Number of the picture."""
        return self.views[0].picture

    @cached_property
    def extent(self) -> Box:
        """Left, top, right and bottom in shares of the picture: the picture, and views that reach beyond it."""
        lefts, tops, rights, bottoms = zip(WHOLE, *(view.box for view in self.views), strict=True)
        return min(lefts), min(tops), max(rights), max(bottoms)

    @cached_property
    def aspect(self) -> float:
        """Width divided by height. Without the picture, cells are square."""
        view = self.views[0]
        if self.look.pictures:
            height, width = self.look.pictures[view.picture].shape[:2]
            shape = float(width / height)
        else:
            shape = (view.columns / view.width) / (view.rows / view.height)
        left, top, right, bottom = self.extent
        return shape * (right - left) / (bottom - top)

    @cached_property
    def unseen(self) -> list[Box]:
        """The parts of the picture that no view covers, as boxes in shares of it that do not overlap."""
        xs = sorted({0.0, 1.0, *(min(max(edge, 0.0), 1.0) for view in self.views for edge in view.box[::2])})
        ys = sorted({0.0, 1.0, *(min(max(edge, 0.0), 1.0) for view in self.views for edge in view.box[1::2])})
        boxes: list[Box] = []
        for top, bottom in itertools.pairwise(ys):
            row: list[Box] = []
            for left, right in itertools.pairwise(xs):
                x, y = (left + right) / 2, (top + bottom) / 2
                if right - left < TOUCH or bottom - top < TOUCH or any(_holds(view.box, x, y) for view in self.views):
                    continue
                if row and abs(row[-1][2] - left) < TOUCH:
                    left = row.pop()[0]
                row.append((left, top, right, bottom))
            boxes += row
        return boxes


def sheets(look: Look) -> list[Sheet]:
    """The sheets of a look, picture by picture; the finest one of a picture first, its overviews after it."""
    pictures = sorted({view.picture for view in look.views})
    made: list[Sheet] = []
    for picture in pictures:
        groups: list[list[int]] = []
        for number, view in enumerate(look.views):
            if view.picture == picture:
                _add(look, groups, number, view)
        areas = [min(_cell(look.views[number]) for number in group) for group in groups]
        for area, group in sorted(zip(areas, groups, strict=True), key=lambda pair: pair[0]):
            kind = look.views[group[0]].title if len(pictures) > 1 or len(groups) > 1 else ""
            title = f"{picture + 1} {kind}".rstrip() if len(pictures) > 1 else kind
            made.append(Sheet(look, tuple(group), title, area > COARSER * min(areas)))
    return made


def _add(look: Look, groups: list[list[int]], number: int, view: View) -> None:
    """Add a view to the first group whose views have its title and do not overlap with it, or to a new one."""
    for group in groups:
        others = [look.views[other] for other in group]
        if others[0].title == view.title and not any(_overlap(view, other) for other in others):
            group.append(number)
            return
    groups.append([number])


def _overlap(one: View, other: View) -> bool:
    width = min(one.box[2], other.box[2]) - max(one.box[0], other.box[0])
    height = min(one.box[3], other.box[3]) - max(one.box[1], other.box[1])
    # neighbouring tiles may share a sliver: their edges are rounded to pixels
    return width > 0.02 * one.width and height > 0.02 * one.height


def _cell(view: View) -> float:
    """Area of a cell as a share of the picture."""
    return view.width * view.height / (view.rows * view.columns)


def _holds(box: Box, x: float, y: float) -> bool:
    return box[0] < x < box[2] and box[1] < y < box[3]
