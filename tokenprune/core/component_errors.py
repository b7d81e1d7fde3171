"""Exceptions of components that others wrote: which component it was, and of which distribution."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tokenprune.core import plugins
from tokenprune.core.blame import place
from tokenprune.core.forward_errors import NO_MEMORY
from tokenprune.errors import PluginError, ScoreError, TokenPruneError


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

    def failed(described: str, error: Exception) -> ScoreError:
        return ScoreError(
            f"{described} failed at layer {layer} ({type(error).__name__}: {error})",
            f"repair its {function}(); the traceback above this error shows where",
        )

    with _named(kind, component, failed):
        yield


@contextmanager
def component_errors(kind: str, component: object, call: str) -> Iterator[None]:
    """Turn an exception from inside the block into one that names the component. Errors of tokenprune pass unchanged.

    Args:
        kind: The component's kind, e.g. ``"metrics"``.
        component: The component whose function runs inside the block.
        call: How that function is called, e.g. ``score(text, answers, choices)``.

    Raises:
        PluginError: The function raised an exception, which is the cause of this error.
    """

    def failed(described: str, error: Exception) -> PluginError:
        what = f"{described} failed ({type(error).__name__}: {' '.join(str(error).split())}; {place(error)})"
        return PluginError(what, f"repair its {call}")

    with _named(kind, component, failed):
        yield


@contextmanager
def _named(kind: str, component: object, failed: Callable[[str, Exception], TokenPruneError]) -> Iterator[None]:
    """Raise what ``failed`` makes of the component in words and an exception from inside the block."""
    try:
        yield
    except (TokenPruneError, *NO_MEMORY):
        raise
    except Exception as error:
        raise failed(plugins.registry(kind).describe(type(component)), error) from error
