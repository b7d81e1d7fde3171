"""Texts that every file and terminal can hold."""

from __future__ import annotations


def well_formed(text: str) -> str:
    r"""A text without lone surrogates, which UTF-8 has no bytes for: each becomes U+FFFD, and pairs their character.

    JSON can write them (``"\ud800"``), undecodable file names hold them, and so may what a plugin returns.
    """
    if text.isascii():
        return str(text)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
