"""Exceptions of components that others wrote: which component it was, and of which distribution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tokenprune.core import plugins
from tokenprune.errors import ScoreError, TokenPruneError


@contextmanager
def blamed(kind: str, component: object, function: str, layer: int) -> Iterator[None]:
    """Turn an exception from inside the block into one that names the component. Errors of tokenprune pass unchanged.

    Args:
        kind: The component's kind, e.g. ``"scorers"``.
        component: The component whose function runs inside the block.
        function: The name of that function.
        layer: The layer before which it runs.

    Raises:
        ScoreError: The function raised an exception, which is the cause of this error.
    """
    try:
        yield
    except (TokenPruneError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        described = plugins.registry(kind).describe(type(component))
        raise ScoreError(
            f"{described} failed at layer {layer} ({type(error).__name__}: {error})",
            f"repair its {function}(); the traceback above this error shows where",
        ) from error
