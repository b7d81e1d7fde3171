"""Errors that a user can cause. Each has a stable code, and a message of one line: what is wrong and how to fix it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class TokenPruneError(Exception):
    """Base class of all errors that tokenprune raises on purpose.

    Args:
        what: The mistake, with the value that was given.
        fix: The allowed values, or a way to fix it.
    """

    code: ClassVar[str] = "tokenprune"

    def __init__(self, what: str, fix: str = "") -> None:
        self.what = what
        self.fix = fix
        super().__init__(f"{what}; {fix}" if fix else what)


class TokenPruneWarning(UserWarning):
    """Tells a user something, though the work goes on. The command line prints it as one line, once."""


class ConfigError(TokenPruneError, ValueError):
    """A configuration is not valid: unknown key, wrong type, broken YAML, a key that stands twice."""

    code = "config"


class UnknownNameError(TokenPruneError, LookupError):
    """No component, method or task of the given name is installed."""

    code = "unknown-name"


class PluginError(TokenPruneError):
    """A component is registered, but it cannot be loaded, is not of its kind, lacks methods, or is switched off."""

    code = "plugin"


class UnsupportedModelError(TokenPruneError):
    """The model lacks something that exact pruning, or the closed form of its FLOPs, needs."""

    code = "unsupported-model"


class UnsupportedFeatureError(TokenPruneError):
    """The model is supported, but not in combination with this feature (static cache, flex attention ...)."""

    code = "unsupported-feature"


class LayerError(TokenPruneError, ValueError):
    """A layer index that does not exist in the model, or that the scorer cannot use."""

    code = "layer"


class BudgetError(TokenPruneError, ValueError):
    """A budget that cannot be met, e.g. with more tokens than the sample has, or fewer than one per image."""

    code = "budget"


class ScoreError(TokenPruneError, ValueError):
    """A scorer or pruner failed or returned an invalid result: NaN, a wrong type or shape, a wrong count."""

    code = "score"


class MissingDataError(TokenPruneError, FileNotFoundError):
    """A checkpoint, data file or optional package is missing."""

    code = "missing-data"


class SampleError(TokenPruneError, ValueError):
    """One sample of a task cannot be used: its image is missing or unreadable, its question is empty ..."""

    code = "sample"


class ForwardError(TokenPruneError, RuntimeError):
    """The model, or a method on it, fails on samples: an exception in its code, or the memory is full."""

    code = "forward"


class OutputError(TokenPruneError, OSError):
    """An output file or folder cannot be written, or the folder holds the results of another experiment."""

    code = "output"


class BusyModelError(TokenPruneError, RuntimeError):
    """A method is already applied to the model."""

    code = "busy-model"


@contextmanager
def within(where: str) -> Iterator[None]:
    """Say in every error from inside the block where it happened: the error is the same with ``where`` before it."""
    try:
        yield
    except TokenPruneError as error:
        raise type(error)(f"{where}: {error.what}", error.fix) from error
