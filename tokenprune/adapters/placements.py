"""The usual ways of laying tokens over pictures."""

import math
from dataclasses import dataclass

from tokenprune.adapters.views import WHOLE, Box, Placement, View, part_of
from tokenprune.errors import SampleError

OVERVIEW, TILES = "overview", "tiles"

#: Share of a tile by which rounding to pixels can change a side.
ROUNDING = 0.1

WRONG_PICTURES = "give the pictures that the processor was given, in their order"


@dataclass(frozen=True)
class Whole(Placement):
    """One grid over the whole picture.

    Attributes:
        box: The part that the tokens cover, where the patches leave out a part at the right or at the bottom.
    """

    box: Box = WHOLE

    def views(self, grids: list[tuple[int, int]], size: tuple[int, int]) -> list[View]:
        """See :meth:`Placement.views`."""
        return [View(0, self.box, rows, columns) for rows, columns in grids]


@dataclass(frozen=True)
class Frames(Placement):
    """A video: every frame of tokens over one picture.

    Attributes:
        step: Frames of the video that one frame of tokens is made of; the first of them is its picture.
        box: The part that the tokens of a frame cover.
    """

    step: int = 1
    box: Box = WHOLE

    def views(self, grids: list[tuple[int, int]], size: tuple[int, int]) -> list[View]:
        """See :meth:`Placement.views`."""
        return [View(frame * self.step, self.box, rows, columns) for frame, (rows, columns) in enumerate(grids)]

    def pictures(self, frames: int) -> tuple[int, int]:
        """See :meth:`Placement.pictures`. A processor repeats the last picture where the last frame lacks some."""
        return (frames - 1) * self.step + 1, frames * self.step


@dataclass(frozen=True)
class OverviewAndJoinedTiles(Placement):
    """Frame 0 is the overview and frame 1 the tiles joined to one grid; both cover the whole picture (Idefics 3).

    The processor stretches the picture to whole tiles: along its shorter side as many as its ratio of sides needs.
    """

    def views(self, grids: list[tuple[int, int]], size: tuple[int, int]) -> list[View]:
        """See :meth:`Placement.views`."""
        if len(grids) == 1:
            return [View(0, WHOLE, *grids[0])]
        overview, tiles = grids
        along = [joined // single for joined, single in zip(tiles, overview, strict=True)]
        (short, long), (fewer, more) = sorted(size), along if size[0] >= size[1] else along[::-1]
        needed = more * short / long  # the processor rounds pixels, the shorter side to an even number
        if not math.ceil(needed - ROUNDING) <= fewer <= math.ceil(needed + ROUNDING):
            raise SampleError(
                f"a picture of {size[0]} x {size[1]} pixels does not make {along[0]} rows of {along[1]} tiles",
                WRONG_PICTURES,
            )
        return [View(0, WHOLE, *overview, OVERVIEW), View(0, WHOLE, *tiles, TILES)]


@dataclass(frozen=True)
class TilesAndThumbnail(Placement):
    """Every frame is a tile, row by row, and the last is the whole picture once more (InternVL).

    The processor stretches the picture to whole tiles. Of all arrangements it takes the one whose ratio of sides is
    nearest to the picture's. Of two that are equally near, the wider one wins if the picture has more than half of the
    pixels that the tiles have.

    Attributes:
        tile: Height and width of a tile in pixels.
    """

    tile: tuple[int, int]

    def views(self, grids: list[tuple[int, int]], size: tuple[int, int]) -> list[View]:
        """See :meth:`Placement.views`."""
        if len(grids) == 1:
            return [View(0, WHOLE, *grids[0])]
        *tiles, overview = grids
        columns = self._columns(len(tiles), *size)
        rows = len(tiles) // columns
        boxes: list[Box] = [
            (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
            for row in range(rows)
            for column in range(columns)
        ]
        views = [View(0, box, *grid, TILES) for box, grid in zip(boxes, tiles, strict=True)]
        return [*views, View(0, WHOLE, *overview, OVERVIEW)]

    def _columns(self, tiles: int, width: int, height: int) -> int:
        """Columns of tiles."""
        possible = [columns for columns in range(1, tiles + 1) if tiles % columns == 0]
        distance = {columns: abs(width / height - columns / (tiles // columns)) for columns in possible}
        nearest = [columns for columns in possible if distance[columns] == min(distance.values())]
        large = width * height > 0.5 * self.tile[0] * self.tile[1] * tiles
        return nearest[-1] if large else nearest[0]


@dataclass(frozen=True)
class AnyResolution(Placement):
    """An overview, then the picture at high resolution without most of its padding (LLaVA-NeXT and its kin).

    The overview is stretched over the whole picture. For the tiles the picture keeps its ratio of sides and is padded
    on two sides; the model then cuts off the rows or columns of tokens that show padding only. What is left of the
    padding is less than one token on each side, and the box reaches beyond the picture there.

    Where a tile is no whole number of patches, its last pixels are in no patch (6 of 384 in SigLIP's). The overview's
    box leaves them out. The grid of tiles has even steps over all of them, so that a token is drawn off by less than
    these pixels.

    Attributes:
        resolutions: Height and width in pixels of the allowed arrangements of tiles.
        tile: Pixels on a side of a tile.
        side: Tokens on a side of a tile.
        patch: Pixels on a side of a patch.
        squared: Whether an overview without tiles shows the picture padded to a square.
        most: Tiles' worth of tokens above which the model scales the grid down; None where it does not.
    """

    resolutions: tuple[tuple[int, int], ...]
    tile: int
    side: int
    patch: int
    squared: bool = False
    most: int | None = None

    def views(self, grids: list[tuple[int, int]], size: tuple[int, int]) -> list[View]:
        """See :meth:`Placement.views`."""
        covered = covered_by_patches(self.tile, self.patch)
        if len(grids) == 1:
            return [View(0, part_of(padded_square(*size), covered) if self.squared else covered, *grids[0])]
        overview, tiles = grids
        box = self._box(size, tiles)
        return [View(0, covered, *overview, OVERVIEW), View(0, box, *tiles, TILES)]

    def _box(self, size: tuple[int, int], grid: tuple[int, int]) -> Box:
        """The part of the picture that the tokens at high resolution cover."""
        width, height = size
        tall, wide = best_resolution(self.resolutions, width, height)  # pixels of all tiles
        all_rows, all_columns = tall // self.tile * self.side, wide // self.tile * self.side
        # tokens that show padding only; the model rounds in its own way
        above = beside = 0
        if width / height > all_columns / all_rows:
            above = (all_rows - int(round(height * (all_columns / width), 7))) // 2
        else:
            beside = (all_columns - int(round(width * (all_rows / height), 7))) // 2
        rows, columns = all_rows - 2 * above, all_columns - 2 * beside
        if grid != self._scaled(rows, columns):
            raise SampleError(
                f"a picture of {width} x {height} pixels does not make {grid[0]} rows of {grid[1]} tokens",
                WRONG_PICTURES,
            )
        # pixels of the picture among those of the tiles
        scale_x, scale_y = wide / width, tall / height
        if scale_x < scale_y:
            shown_wide, shown_tall = wide, min(math.ceil(height * scale_x), tall)
        else:
            shown_wide, shown_tall = min(math.ceil(width * scale_y), wide), tall
        left, top = (wide - shown_wide) // 2, (tall - shown_tall) // 2
        token_x, token_y = wide / all_columns, tall / all_rows
        return (
            (beside * token_x - left) / shown_wide,
            (above * token_y - top) / shown_tall,
            ((beside + columns) * token_x - left) / shown_wide,
            ((above + rows) * token_y - top) / shown_tall,
        )

    def _scaled(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns after the model scaled a large grid down."""
        ratio = 1.0 if self.most is None else math.sqrt(rows * columns / (self.most * self.side**2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


def best_resolution(resolutions: tuple[tuple[int, int], ...], width: int, height: int) -> tuple[int, int]:
    """The arrangement of tiles for a picture: most pixels of the picture, then least padding; the first of equals.

    Args:
        resolutions: Height and width in pixels of the allowed arrangements.
        width: Width of the picture in pixels.
        height: Height of the picture in pixels.
    """

    def worth(resolution: tuple[int, int]) -> tuple[int, int]:
        tall, wide = resolution
        scale = min(wide / width, tall / height)
        pixels = min(int(width * scale) * int(height * scale), width * height)
        return pixels, pixels - tall * wide

    return max(resolutions, key=worth)


def padded_square(width: int, height: int) -> Box:
    """The square that a picture is padded to, centred, as shares of the picture."""
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return (-left / width, -top / height, (side - left) / width, (side - top) / height)


def covered_by_patches(image: int, patch: int) -> Box:
    """The part of a square image that whole patches cover: a rest at the right and at the bottom is in none.

    Args:
        image: Pixels on a side of the image.
        patch: Pixels on a side of a patch.
    """
    share = image // patch * patch / image
    return (0.0, 0.0, share, share)
