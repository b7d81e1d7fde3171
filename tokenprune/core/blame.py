"""Where an exception was raised, and whose code it was: that of a plugin, or ours."""

import traceback
from importlib.util import find_spec
from pathlib import Path

from tokenprune.core.plugins import COMPONENT_KINDS, DISTRIBUTION, discover


def plugins_installed() -> dict[str, str]:
    """Top-level module of every plugin -> its distribution. They are found also while they are switched off."""
    return {
        entry.target.partition(":")[0].partition(".")[0]: entry.distribution
        for kind in COMPONENT_KINDS
        for entry in discover(f"tokenprune.{kind}")
        if entry.distribution != DISTRIBUTION
    }


def plugin_of(error: BaseException) -> str | None:
    """The distribution of the plugin whose code raised an exception, or called what did; None for no plugin.

    Args:
        error: The exception, with its traceback. The innermost frame of a plugin decides.
    """
    owners = plugins_installed()
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        found = owners.get(frame.f_globals.get("__name__", "").partition(".")[0], found)
    return found


def place(error: BaseException) -> str:
    """Where an exception was raised: the file with its folder, and the line. Torch's own files tell nothing."""
    torch = find_spec("torch")
    hidden = str(Path(torch.origin).parent) if torch is not None and torch.origin else "<nothing>"
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((item for item in reversed(frames) if not item.filename.startswith(hidden)), frames[-1])
    return f"{'/'.join(Path(frame.filename).parts[-2:])}, line {frame.lineno}"
