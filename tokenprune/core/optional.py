"""Optional packages: imported when they are first needed, with an error that says how to install them."""

import importlib
from typing import Any

from tokenprune.errors import MissingDataError


def optional(module: str, purpose: str, extra: str = "data") -> Any:
    """Import a module of an optional package.

    Args:
        module: Its dotted name, e.g. ``"pyarrow.parquet"``.
        purpose: The task that needs it, for the error, e.g. ``"reading Parquet"``.
        extra: The extra of tokenprune that installs the package.

    Raises:
        MissingDataError: The package is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDataError(
            f"{purpose} needs the package {module.partition('.')[0]!r} ({error})",
            f"pip install 'tokenprune-mllm[{extra}]'",
        ) from error
