"""Packages of others, imported when an executor is used."""

from __future__ import annotations

import importlib
from typing import Any

from tokenprune.authoring import MissingDataError


def package(name: str, extra: str) -> Any:
    """Import a package.

    Args:
        name: Its name.
        extra: The extra of this distribution that installs it.

    Raises:
        MissingDataError: It is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDataError(
            f"the executor {name} needs the package {name!r} ({error})", f"pip install 'tokenprune-cluster[{extra}]'"
        ) from error


def in_one_line(error: BaseException) -> str:
    """The message of an exception of such a package, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
