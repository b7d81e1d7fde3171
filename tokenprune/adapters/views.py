"""Places of visual tokens on the pictures of a prompt."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from tokenprune.adapters.modalities import Modality

#: Left, top, right and bottom, as shares of a width and a height. A box may reach beyond 0 and 1: there is padding.
Box: TypeAlias = tuple[float, float, float, float]

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def part_of(outer: Box, inner: Box) -> Box:
    """A box given as shares of another box, as shares of what the other is given in."""
    left, top, right, bottom = outer
    width, height = right - left, bottom - top
    return (left + inner[0] * width, top + inner[1] * height, left + inner[2] * width, top + inner[3] * height)


@dataclass(frozen=True)
class View:
    """A grid of visual tokens over a part of one picture.

    Attributes:
        picture: Number of the picture among those of the sample: its images and the frames of its videos, in the order
            of the prompt, from 0.
        box: Left, top, right and bottom of the part, as shares of the picture's width and height. Where the model was
            shown padding, the box reaches beyond the picture: below 0 or above 1.
        rows: Rows of tokens.
        columns: Columns of tokens.
        title: The kind of view, where a picture has several: ``overview``, ``tiles`` ...; else empty. Views of one
            picture with the same title lie beside each other; views with different titles lie over each other.
    """

    picture: int
    box: Box
    rows: int
    columns: int
    title: str = ""

    @property
    def width(self) -> float:
        """Width of the part, as a share of the picture's."""
        return self.box[2] - self.box[0]

    @property
    def height(self) -> float:
        """Height of the part, as a share of the picture's."""
        return self.box[3] - self.box[1]


class Placement(ABC):
    """Lays the token grid of an item over its pictures. Frozen, and free of the model and its tensors."""

    @abstractmethod
    def views(self, grids: list[tuple[int, int]], size: tuple[int, int]) -> list[View]:
        """One view per frame of the item's grid; frames as in :meth:`tokenprune.adapters.base.Adapter.grid`.

        Args:
            grids: Rows and columns of tokens of each frame.
            size: Width and height of the item's picture (of a video: of its first frame), in pixels.

        Returns:
            The views. ``picture`` counts from 0 within the item; boxes are shares of what the model saw of the picture,
            which a processor may have cropped before.

        Raises:
            SampleError: The grid cannot be that of a picture of this size.
        """

    def pictures(self, frames: int) -> tuple[int, int]:
        """The fewest and the most pictures that an item of so many frames of tokens can be made of."""
        return 1, 1


@dataclass(frozen=True)
class PlacedItem:
    """The tokens of one image or video of a prompt, and how they lie on its pictures.

    Attributes:
        modality: ``image`` or ``video``.
        positions: Sequence positions of its tokens, long ``[tokens]``, on the host.
        coordinates: (frame, row, column) of each token, long ``[tokens, 3]``; -1 for separators. None where the family
            cannot tell them from this call.
        placement: Lays the grid over the pictures.
    """

    modality: Modality
    positions: Tensor
    coordinates: Tensor | None
    placement: Placement

    @property
    def grids(self) -> list[tuple[int, int]]:
        """Rows and columns of tokens of each frame; empty where the coordinates are unknown."""
        if self.coordinates is None or not len(self.coordinates):
            return []
        frames = int(self.coordinates[:, 0].max()) + 1
        cells = [self.coordinates[self.coordinates[:, 0] == frame] for frame in range(frames)]
        return [(int(frame[:, 1].max()) + 1, int(frame[:, 2].max()) + 1) if len(frame) else (0, 0) for frame in cells]
