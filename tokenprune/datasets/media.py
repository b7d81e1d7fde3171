"""Pictures and videos that a row names: a path, or the file's own bytes. Pillow and PyAV read them."""

from __future__ import annotations

import hashlib
import io
import os
import re
from dataclasses import dataclass, field
from fractions import Fraction
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenprune.core.optional import optional
from tokenprune.core.text import one_line
from tokenprune.datasets.values import short
from tokenprune.errors import SampleError

if TYPE_CHECKING:
    from PIL.Image import Image

URL = re.compile(r"[a-z][a-z0-9+.-]+:(?://|.*;base64,)", re.I)
DOWNLOAD = "download it first, and write the path of the file"


@dataclass(frozen=True)
class Source:
    """The place of the bytes of a picture or video.

    Attributes:
        key: A stable id: the path as the row writes it, or a hash of the bytes.
        path: The file, unless the row holds the bytes.
        data: The bytes, if the row holds them.
    """

    key: str
    path: Path | None = None
    data: bytes = field(default=b"", repr=False)

    def open(self) -> Path | io.BytesIO:
        """The path, or the bytes as a file, for Pillow and PyAV."""
        return self.path if self.path is not None else io.BytesIO(self.data)

    def unreadable(self, kind: str, where: str, error: Exception) -> SampleError:
        """The error for an ``image`` or ``video`` that a decoder does not take."""
        what = f"{where}: the {kind} {self.key!r} cannot be read ({one_line(error)})"
        return SampleError(what, "replace the file, or remove the line")


@singledispatch
def source(value: Any, folder: Path, where: str) -> Source:
    """The source that a value of a row names.

    Args:
        value: A path, the bytes of a file, or a mapping with ``bytes`` or ``path`` as Hugging Face datasets have it.
        folder: Where relative paths start.
        where: The row, for messages.

    Raises:
        SampleError: The value is none of these or a URL, or the file is missing.
    """
    what = f"{where}: an image or video cannot be read from the type {type(value).__name__}: {short(value)}"
    raise SampleError(what, "write the path of a file")


@source.register
def _(value: str, folder: Path, where: str) -> Source:
    name = value.strip()
    if URL.match(name):
        raise SampleError(f"{where}: {short(name)} is a URL, and nothing is downloaded", DOWNLOAD)
    path = folder / Path(name).expanduser()
    if not os.path.isfile(path):  # unlike Path.is_file, it takes names that are too long
        kind = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
        what = f"{where}: the file {name!r} {kind} ({path})"
        raise SampleError(what, "correct the path, or set `images` to the folder in which paths start")
    return Source(Path(os.path.normpath(name)).as_posix(), path)


@source.register
def _(value: bytes, folder: Path, where: str) -> Source:
    return Source(f"sha256:{hashlib.sha256(value).hexdigest()[:16]}", data=value)


@source.register
def _(value: dict, folder: Path, where: str) -> Source:  # type: ignore[type-arg]
    data, path = value.get("bytes"), value.get("path")
    if data is None and path is None:
        raise SampleError(f"{where}: an image has neither bytes nor a path", "write one of them")
    return source(path if data is None else data, folder, where)


def read_image(item: Source, where: str) -> Image:
    """Decode a picture: RGB, turned the way that its EXIF orientation says.

    Raises:
        SampleError: It is broken, cut short, or of an unknown format.
    """
    image_module, operations = optional("PIL.Image", "an image"), optional("PIL.ImageOps", "an image")
    try:
        with image_module.open(item.open()) as opened:
            picture: Image = eight_bits(operations.exif_transpose(opened)).convert("RGB")
    except Exception as error:  # Pillow's decoders raise many kinds: OSError, SyntaxError, ValueError, struct.error ...
        raise item.unreadable("image", where, error) from error
    return picture


def eight_bits(picture: Image) -> Image:
    """A grey picture of 16 bits as one of 8, which Pillow would cut off at 255; other pictures as they are.

    Raises:
        ValueError: The picture has 32 bits per pixel, of which nobody knows which value is white.
    """
    if picture.mode.startswith("I;16"):
        image_module = optional("PIL.Image", "an image")
        made: Image = image_module.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        return made
    if picture.mode in ("I", "F"):
        raise ValueError(f"a grey picture of 32 bits (mode {picture.mode})")
    return picture


def read_video(item: Source, count: int, where: str) -> tuple[NDArray[np.uint8], float]:
    """Frames at even distances over a video, with its first and its last one.

    The video is read twice: to count its frames, which no container states reliably, and to decode them. Only the
    chosen frames are held.

    Args:
        item: The video.
        count: The number of frames; a video with fewer gives all of them.
        where: The row, for messages.

    Returns:
        uint8 array ``[frames, height, width, 3]``, RGB, and how many of these frames a second has.

    Raises:
        SampleError: The video is broken, cut short, or of an unknown format.
    """
    av = optional("av", "a video")
    try:
        with av.open(item.open()) as container:
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            total = sum(packet.size > 0 for packet in container.demux(stream))
        wanted = {int(index) for index in np.linspace(0, total - 1, min(count, total)).round()}
        with av.open(item.open()) as container:
            frames = [
                frame.to_ndarray(format="rgb24")
                for index, frame in enumerate(container.decode(video=0))
                if index in wanted
            ]
        if not wanted or len(frames) < len(wanted):
            raise ValueError(f"{len(frames)} of {len(wanted)} chosen frames can be decoded")
    except Exception as error:  # av.error.FFmpegError, IndexError without a video stream, the ValueError above
        raise item.unreadable("video", where, error) from error
    return np.stack(frames), float(len(frames) * rate / total)
