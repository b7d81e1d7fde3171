"""Where a row says that a picture or video is: a path, the file's own bytes, or these bytes as text in base64."""

import base64
import binascii
import hashlib
import io
import os
import re
from dataclasses import dataclass, field
from functools import singledispatch
from pathlib import Path
from typing import Any

from tokenprune.core.text import one_line
from tokenprune.datasets.values import short
from tokenprune.errors import SampleError

URL_SAFE = str.maketrans("-_", "+/")  # two characters have others in addresses
ADDRESS = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),", re.I)
#: First bytes of pictures and videos: a text that begins with one of them in base64 is no path.
FILES = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF.{4}(?:WEBP|AVI )|II\*\0|MM\0\*|.{4}ftyp|\x1aE\xdf\xa3|BM.{4}\0{4}", re.S
)
#: Characters that are looked at, those of 24 bytes; no picture is shorter.
HEAD = 32


def is_base64(text: str) -> bool:
    """Whether a text is a ``data:`` address, or begins like a picture or video in base64."""
    if ADDRESS.match(text):
        return True
    try:
        head = base64.b64decode(text[:HEAD].translate(URL_SAFE), validate=True)
    except ValueError:  # not ASCII, or no base64
        return False
    return len(text) > HEAD and FILES.match(head) is not None


def decoded(text: str, where: str) -> bytes:
    """The bytes of a text for which :func:`is_base64` is true. Line breaks inside it do not count.

    Args:
        text: The text.
        where: The row, for messages.

    Raises:
        SampleError: It is cut off, or has other characters.
    """
    address = ADDRESS.match(text)
    if address and not address[2].lower().endswith(";base64"):
        raise SampleError(f"{where}: {short(text)} is not base64", "write data:image/png;base64,... or a path")
    code = "".join(text[address.end() if address else 0 :].split()).translate(URL_SAFE)
    try:
        return base64.b64decode(code + "=" * (-len(code) % 4), validate=True)
    except binascii.Error as error:
        what = f"{where}: a file in base64 ({len(code)} characters, {short(text)}) cannot be decoded ({error})"
        raise SampleError(what, "write it again; programs like spreadsheets cut long cells") from error


URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.I)
#: First bytes of the formats in which a single picture is stored.
PICTURE = re.compile(rb"\x89PNG|\xff\xd8\xff|BM|II\*\0|MM\0\*|RIFF....WEBP|....ftyp(?:avif|hei|mif1)", re.S)
LONGEST = 4096  # characters of a path
DOWNLOAD = "download it first, and write the path of the file"
ALLOWED = "write the path of a file; in Parquet and datasets also its bytes, in text files also its bytes in base64"


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

    def is_picture(self) -> bool:
        """Whether the first bytes are those of a picture. A GIF counts as a video; so does what cannot be read."""
        if self.path is None:
            return PICTURE.match(self.data) is not None
        try:
            with self.path.open("rb") as file:
                return PICTURE.match(file.read(16)) is not None
        except OSError:
            return False

    def unreadable(self, kind: str, where: str, error: Exception | str) -> SampleError:
        """The error for an ``image`` or ``video`` that a decoder does not take."""
        what = f"{where}: the {kind} {short(self.key)} cannot be read ({one_line(error)})"
        return SampleError(what, "replace the file, or remove the line")


@singledispatch
def source(value: Any, folder: Path, where: str) -> Source:
    """The source that a value of a row names.

    Args:
        value: A path, the bytes of a file, these bytes as base64 or as a ``data:`` address, or a mapping with ``bytes``
            or ``path`` as Hugging Face datasets have it.
        folder: Where relative paths start.
        where: The row, for messages.

    Raises:
        SampleError: The value is none of these or a URL, or the file is missing.
    """
    what = f"{where}: an image or video cannot be read from the type {type(value).__name__}: {short(value)}"
    raise SampleError(what, ALLOWED)


@source.register
def _(value: str, folder: Path, where: str) -> Source:
    name = value.strip()
    if URL.match(name):
        raise SampleError(f"{where}: {short(name)} is a URL, and nothing is downloaded", DOWNLOAD)
    if not name:
        raise SampleError(f"{where}: the path is empty", ALLOWED)
    path = folder / os.path.expanduser(name[:LONGEST])
    if len(name) < LONGEST and os.path.isfile(path):  # unlike Path.is_file, it takes names that are too long
        return Source(Path(os.path.normpath(name)).as_posix(), path)
    if is_base64(name):
        return source(decoded(name, where), folder, where)
    kind = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
    shown = repr(str(path))[1:-1]  # no line breaks, nor other characters that do things
    shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
    what = f"{where}: the file {short(name)} {kind} ({shown})"
    raise SampleError(what, "correct the path, or set `images` to the folder in which paths start")


@source.register
def _(value: bytes, folder: Path, where: str) -> Source:
    return Source(f"sha256:{hashlib.sha256(value).hexdigest()[:16]}", data=value)


@source.register
def _(value: dict, folder: Path, where: str) -> Source:  # type: ignore[type-arg]
    data, path = value.get("bytes"), value.get("path")
    if data is None and path is None:
        raise SampleError(f"{where}: an image has neither bytes nor a path", "write one of them")
    return source(path if data is None else data, folder, where)
