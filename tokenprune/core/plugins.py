"""Discovery of components through entry points. The components of tokenprune itself are found the same way.

A distribution adds a component with one line in its metadata::

    [project.entry-points."tokenprune.scorers"]
    l2norm = "my_pkg:L2Norm"

The environment variable ``TOKENPRUNE_NO_PLUGINS=1`` (or :func:`builtin_only`) hides the components of other
distributions, e.g. to find out whether a plugin causes a problem.
"""

import functools
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import metadata
from typing import Any

from tokenprune.core.registry import Entry, Registry
from tokenprune.errors import MissingDataError, PluginError

DISTRIBUTION = "tokenprune-mllm"

#: Kind -> (singular word, "module:BaseClass"). The base is a string, because the bases import modules that import
#: this one.
COMPONENT_KINDS: dict[str, tuple[str, str]] = {
    "scorers": ("scorer", "tokenprune.scorers.base:Scorer"),
    "selectors": ("layer selector", "tokenprune.selectors.base:LayerSelector"),
    "pruners": ("pruner", "tokenprune.pruners.base:Pruner"),
    "budgets": ("budget", "tokenprune.budgets.base:Budget"),
    "adapters": ("adapter", "tokenprune.adapters.base:Adapter"),
    "metrics": ("metric", "tokenprune.metrics.base:Metric"),
    "tasks": ("task", "tokenprune.tasks.base:Task"),
    "models": ("model", "tokenprune.models.base:ModelSpec"),
    "executors": ("executor", "tokenprune.executors.base:Executor"),
}

_builtin_only: ContextVar[bool] = ContextVar("tokenprune_builtin_only", default=False)


@contextmanager
def builtin_only() -> Iterator[None]:
    """Ignore all plugins inside the block. Only the components of tokenprune itself are found."""
    token = _builtin_only.set(True)
    try:
        yield
    finally:
        _builtin_only.reset(token)


def registry(kind: str) -> Registry[Any]:
    """The registry of one kind (``"scorers"``, ``"selectors"``, ``"pruners"`` ...)."""
    return _registry(kind, plugins_disabled())


def plugins_disabled() -> bool:
    """Whether plugins are switched off, by :func:`builtin_only` or the environment variable."""
    return _builtin_only.get() or os.environ.get("TOKENPRUNE_NO_PLUGINS", "") not in ("", "0")


def discover_visible(group: str) -> tuple[Entry, ...]:
    """The entries of one entry-point group; those of plugins only while plugins are switched on."""
    return discover(group, plugins_disabled())


def require(distribution: str, how: str) -> None:
    """Check that a distribution is installed and its components are visible.

    Args:
        distribution: Its name.
        how: Instruction to install it, for the error.

    Raises:
        MissingDataError: It is not installed.
        PluginError: It is a plugin, and plugins are switched off.
    """
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        raise MissingDataError(f"the distribution {distribution!r} is needed and not installed", how) from None
    if plugins_disabled() and distribution != DISTRIBUTION:
        raise PluginError(
            f"the plugin {distribution!r} is needed, and plugins are switched off",
            "leave out --no-plugins, and unset TOKENPRUNE_NO_PLUGINS",
        )


def refresh() -> None:
    """Discover all components again, e.g. after a plugin was installed in the running process."""
    discover.cache_clear()
    _registry.cache_clear()


@functools.cache
def _registry(kind: str, builtin: bool) -> Registry[Any]:
    word, target = COMPONENT_KINDS[kind]
    module, _, attribute = target.partition(":")
    base = getattr(importlib.import_module(module), attribute)
    return Registry(word, base, discover(f"tokenprune.{kind}", builtin))


@functools.cache
def discover(group: str, builtin: bool = False) -> tuple[Entry, ...]:
    """The entries of one entry-point group: first those of tokenprune, then by distribution and name.

    Args:
        group: The entry-point group, e.g. ``"tokenprune.scorers"``.
        builtin: Leave out the entries of other distributions.
    """
    entries: dict[tuple[str, str, str], Entry] = {}  # an editable install can be listed twice
    for point in metadata.entry_points(group=group):
        owner = point.dist.name if point.dist is not None else "unknown distribution"
        if builtin and owner != DISTRIBUTION:
            continue
        entry = Entry(name=point.name, target=point.value, distribution=owner, load=point.load)
        entries.setdefault((point.name, point.value, owner), entry)
    return tuple(
        sorted(entries.values(), key=lambda entry: (entry.distribution != DISTRIBUTION, entry.distribution, entry.name))
    )
