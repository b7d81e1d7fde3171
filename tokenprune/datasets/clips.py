"""The clips that the column ``video`` of a row names: files of videos, or lists of pictures."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tokenprune.datasets.media import Source, source
from tokenprune.datasets.picture import is_animation, read_image
from tokenprune.datasets.values import short
from tokenprune.datasets.video import FrameArrays, evenly, read_video
from tokenprune.errors import SampleError


class Clip(ABC):
    """A clip that is read when it is asked for.

    Attributes:
        key: A stable id.
    """

    key: str

    @abstractmethod
    def read(self, count: int, rate: float, where: str) -> FrameArrays:
        """Frames at even distances, with the first and the last one.

        Args:
            count: The number of frames; a clip with fewer gives all of them.
            rate: Pictures per second of a clip that is a list of pictures.
            where: The row, for messages.

        Raises:
            SampleError: The clip cannot be read.
        """


@dataclass(frozen=True)
class VideoFile(Clip):
    """A file of a video; its key is that of the file."""

    item: Source
    key: str

    def read(self, count: int, rate: float, where: str) -> FrameArrays:
        """Frames of the file, at the times that it states."""
        return read_video(self.item, count, where)


@dataclass(frozen=True)
class Pictures(Clip):
    """Pictures of one size, as the frames of one clip."""

    items: tuple[Source, ...]
    key: str

    def read(self, count: int, rate: float, where: str) -> FrameArrays:
        """The chosen pictures; the others are not read."""
        chosen = evenly(list(range(len(self.items))), count)
        frames = [np.asarray(read_image(self.items[place], where)) for place in chosen]
        if any(is_animation(self.items[place]) for place in chosen):
            what = f"{where}: the video {short(self.key)} is an animated picture, of which only GIF is read as a video"
            raise SampleError(what, "write it as GIF or MP4, or into the column `image` for its first picture")
        for place, frame in zip(chosen, frames, strict=True):
            if frame.shape != frames[0].shape:
                sizes = " and ".join(f"{shape[1]} x {shape[0]}" for shape in (frames[0].shape, frame.shape))
                names = f"{self.items[0].key!r} and {self.items[place].key!r}"
                raise SampleError(
                    f"{where}: the frames {names} of one clip have different sizes ({sizes})",
                    "write frames of one size, or put pictures that are no clip into the column `images`",
                )
        return np.stack(frames), tuple(place / rate for place in chosen), len(self.items) / rate


def clips(values: Sequence[object], folder: Path, where: str) -> list[Clip]:
    """The clips of a row: of a list of pictures one, of a list of videos as many, of a list of lists one for each list.

    Args:
        values: What the row names; see :func:`~tokenprune.datasets.media.source`.
        folder: Where relative paths start.
        where: The row, for messages.

    Raises:
        SampleError: A file is missing, or pictures stand beside videos.
    """
    lists = [value for value in values if isinstance(value, list)]
    if lists and len(lists) < len(values):
        raise SampleError(f"{where}: video holds lists beside single files", "write one list for each clip")
    found = [clip for value in lists for clip in clips(value, folder, where)]
    if lists:
        return found
    items = tuple(source(value, folder, where) for value in values if value not in (None, ""))
    pictures = [item.is_picture() for item in items]
    if not any(pictures):
        return [VideoFile(item, item.key) for item in items]
    if not all(pictures):
        what = f"{where}: video holds the picture {items[pictures.index(True)].key!r} beside a video"
        raise SampleError(what, "write the frames of one clip, or the files of videos")
    return [Pictures(items, "|".join(item.key for item in items))]
