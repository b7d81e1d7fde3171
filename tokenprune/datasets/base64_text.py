"""Files that stand in a row as text: base64, alone or as a ``data:`` address."""

from __future__ import annotations

import base64
import binascii
import re

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
