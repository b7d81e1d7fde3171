"""Texts that every file and terminal can hold, and the files that they are written to."""

from pathlib import Path

from tokenprune.errors import OutputError


def well_formed(text: str) -> str:
    r"""A text without lone surrogates, which UTF-8 has no bytes for: each becomes U+FFFD, and pairs their character.

    JSON can write them (``"\ud800"``), undecodable file names hold them, and so may what a plugin returns.
    """
    if text.isascii():
        return str(text)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def one_line(error: Exception | str) -> str:
    """The message of an exception without line breaks; the name of its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def write_file(path: Path, content: str | bytes) -> None:
    """Write bytes, or a text as UTF-8. The file's folder is made.

    Raises:
        OutputError: The file cannot be written.
    """
    data = content if isinstance(content, bytes) else well_formed(content).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror or error})", "choose another file") from None
