"""Where the visual tokens of a prompt are on its pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from tokenprune.adapters.modalities import Modality


@dataclass(frozen=True)
class View:
    """A grid of visual tokens over a part of one picture.

    Attributes:
        picture: Number of the picture among those of the sample: its images and the frames of its videos, in the order
            of the prompt, from 0.
        box: Left, top, right and bottom of the part, as shares of the picture's width and height.
        rows: Rows of tokens.
        columns: Columns of tokens.
        title: What the view is, where a picture has several: ``overview``, ``tiles`` ...; else empty.
    """

    picture: int
    box: tuple[float, float, float, float]
    rows: int
    columns: int
    title: str = ""


class Placement(ABC):
    """How the token grid of an item lies on its pictures. Frozen, and free of the model and its tensors."""

    @abstractmethod
    def views(self, grids: list[tuple[int, int]], size: tuple[int, int]) -> list[View]:
        """One view per frame of the item's grid; frames as in :meth:`tokenprune.adapters.base.Adapter.grid`.

        Args:
            grids: Rows and columns of tokens of each frame.
            size: Width and height of the item's picture (of a video: of its first frame), in pixels.

        Returns:
            The views. ``picture`` counts from 0 within the item; boxes are shares of what the model saw of the picture,
            which a processor may have cropped before.
        """


@dataclass(frozen=True)
class PlacedItem:
    """The tokens of one image or video of a prompt, and how they lie on its pictures.

    Attributes:
        modality: ``image`` or ``video``.
        positions: Sequence positions of its tokens, long ``[tokens]``, on the host.
        coordinates: (frame, row, column) of each token, long ``[tokens, 3]``; -1 for separators.
        placement: How the grid lies on the pictures.
    """

    modality: Modality
    positions: Tensor
    coordinates: Tensor
    placement: Placement
