"""Whose code raised an exception: that of a plugin, or ours."""

from __future__ import annotations

from traceback import walk_tb

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
    for frame, _ in walk_tb(error.__traceback__):
        found = owners.get(frame.f_globals.get("__name__", "").partition(".")[0], found)
    return found
