"""Errors a user can cause: one clear line (what, got, fix) and a stable code each."""

from __future__ import annotations

from typing import ClassVar


class TokenPruneError(Exception):
    """Base of every error that tokenprune raises on purpose.

    Args:
        what: What is wrong, with what was given.
        fix: What is allowed, or what to do about it.
    """

    code: ClassVar[str] = "tokenprune"

    def __init__(self, what: str, fix: str = "") -> None:
        self.what = what
        self.fix = fix
        super().__init__(f"{what}; {fix}" if fix else what)


class ConfigError(TokenPruneError, ValueError):
    """A configuration cannot be understood: unknown key, wrong type, broken YAML."""

    code = "config"


class UnknownNameError(TokenPruneError, LookupError):
    """No component, method or task of that name is installed."""

    code = "unknown-name"


class PluginError(TokenPruneError):
    """A component is registered, but cannot be loaded or is not what its group asks for."""

    code = "plugin"


class UnsupportedModelError(TokenPruneError):
    """The engine cannot find, in this model, what it needs to prune it exactly."""

    code = "unsupported-model"


class UnsupportedFeatureError(TokenPruneError):
    """The model is supported, but not together with this feature (static cache, flex attention ...)."""

    code = "unsupported-feature"


class LayerError(TokenPruneError, ValueError):
    """A layer index that the model, or the method's scorer, cannot serve."""

    code = "layer"


class BudgetError(TokenPruneError, ValueError):
    """A budget that cannot be met: more tokens than there are, or fewer than one per image."""

    code = "budget"


class ScoreError(TokenPruneError, ValueError):
    """A scorer or pruner returned something that cannot be used: NaN, wrong shape, wrong count."""

    code = "score"


class MissingDataError(TokenPruneError, FileNotFoundError):
    """A checkpoint, data file or optional package is not there."""

    code = "missing-data"


class OutputError(TokenPruneError, OSError):
    """The output folder cannot be written, or holds another experiment's results."""

    code = "output"


class BusyModelError(TokenPruneError, RuntimeError):
    """The model already has a method applied to it."""

    code = "busy-model"
