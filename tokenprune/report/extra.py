"""Files that need the extra ``report``: written where its packages are installed, and never left out silently."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tokenprune.drawing.vega import Json, png
from tokenprune.errors import TokenPruneWarning


class NotWrittenWarning(TokenPruneWarning):
    """Files of a report were not written, because packages are missing."""


def drawn(spec: Json) -> bytes | str:
    """The PNG file of a chart for a notebook; where packages are missing, a sentence that says so."""
    try:
        return png(spec)
    except ImportError as error:
        return f"no chart ({error}); to get it, pip install 'tokenprune-mllm[report]'"


def write_drawn(writers: Mapping[Path, Callable[[Path], Sequence[Path] | None]]) -> list[Path]:
    """Write files that need optional packages.

    Args:
        writers: File -> the function that writes it. It imports what it needs, and returns its files if there are
            several.

    Returns:
        The files that were written.

    Warns:
        NotWrittenWarning: A package could not be imported.
    """
    written: list[Path] = []
    missing: dict[str, str] = {}
    for path, write in writers.items():
        try:
            files = write(path)
        except ImportError as error:
            missing[path.name] = str(error)
        else:
            written += files or [path]
    if missing:
        names, reasons = " and ".join(missing), "; ".join(dict.fromkeys(missing.values()))
        warnings.warn(
            f"not written: {names} ({reasons}); to get them, pip install 'tokenprune-mllm[report]' and run the same"
            " command again",
            NotWrittenWarning,
            stacklevel=3,
        )
    return written
