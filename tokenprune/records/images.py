"""Pictures and videos that a row names: a path, or the file's own bytes."""

from __future__ import annotations

import hashlib
import io
import os
import re
from dataclasses import dataclass, field
from functools import singledispatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenprune.core.optional import optional
from tokenprune.errors import SampleError
from tokenprune.records.values import short

if TYPE_CHECKING:
    from PIL.Image import Image

URL = re.compile(r"[a-z][a-z0-9+.-]+:(?://|.*;base64,)", re.I)
DOWNLOAD = "download it first, and write the path of the file"


@dataclass(frozen=True)
class Source:
    """Where the bytes of a picture or video are.

    Attributes:
        key: A stable id: the path as the row writes it, or a hash of the bytes.
        path: The file, unless the row holds the bytes.
        data: The bytes, if the row holds them.
    """

    key: str
    path: Path | None = None
    data: bytes = field(default=b"", repr=False)

    def open(self) -> Path | io.BytesIO:
        """What Pillow and PyAV open."""
        return self.path if self.path is not None else io.BytesIO(self.data)


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
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
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
        reason = " ".join(str(error).split()) or type(error).__name__
        what = f"{where}: the image {item.key!r} cannot be read ({reason})"
        raise SampleError(what, "replace the file, or remove the line") from error
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
