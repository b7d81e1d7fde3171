"""Pictures and videos as a harness holds them, made what experiments show to a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenprune.core.optional import optional
from tokenprune.core.text import one_line
from tokenprune.datasets.media import source
from tokenprune.datasets.picture import read_image, upright
from tokenprune.datasets.video import read_video
from tokenprune.errors import SampleError
from tokenprune.tasks.base import Video

if TYPE_CHECKING:  # Pillow is optional: only tasks with pictures need it
    from PIL.Image import Image

#: What a harness may hold.
ALLOWED = "give a picture of Pillow, or the path or the bytes of a file"


def picture_of(value: Any, where: str) -> Image:
    """A picture as experiments show it: RGB, upright, on white.

    Args:
        value: A picture of Pillow; or the path, the bytes, or the mapping with either, of a file.
        where: Which picture it is, for errors.

    Raises:
        SampleError: It is none of these, or cannot be read.
    """
    if isinstance(value, optional("PIL.Image", "an image").Image):
        try:
            return upright(value)
        except Exception as error:  # Pillow decodes late, and its decoders raise many kinds
            raise SampleError(f"{where}: the picture cannot be read ({one_line(error)})", "repair the data") from error
    try:
        return read_image(source(value, Path(), where), where)
    except SampleError as error:  # the usual fix talks about rows of a file
        raise SampleError(error.what, ALLOWED) from error


def video_of(value: Any, frames: int, where: str) -> Video:
    """A video as experiments show it: frames at even distances in time, each with its time.

    Args:
        value: The path, the bytes, or the mapping with either, of a file.
        frames: Frames that are taken; a shorter video gives all of its own.
        where: Which video it is, for errors.

    Raises:
        SampleError: It is none of these, or cannot be read.
    """
    try:
        return Video(*read_video(source(value, Path(), where), frames, where))
    except SampleError as error:
        raise SampleError(error.what, "give the path or the bytes of a video file") from error
