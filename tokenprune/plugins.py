"""Discovery of components through entry points; tokenprune's own are found the same way.

A distribution adds a component with one line in its metadata::

    [project.entry-points."tokenprune.scorers"]
    l2norm = "my_pkg:L2Norm"

Set the environment variable ``TOKENPRUNE_NO_PLUGINS=1`` (or use :func:`builtin_only`) to see only what
tokenprune itself ships: the way out when a plugin is suspected.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import metadata
from typing import Any

from tokenprune.registry import Entry, Registry

DISTRIBUTION = "tokenprune-mllm"

# kind -> (singular word, "module:BaseClass"); the base is a string because bases import this module's users
KINDS: dict[str, tuple[str, str]] = {
    "scorers": ("scorer", "tokenprune.scorers.base:Scorer"),
    "selectors": ("layer selector", "tokenprune.selectors.base:LayerSelector"),
    "pruners": ("pruner", "tokenprune.pruners.base:Pruner"),
    "budgets": ("budget", "tokenprune.budgets.base:Budget"),
    "adapters": ("adapter", "tokenprune.adapters.base:Adapter"),
    "tasks": ("task", "tokenprune.tasks.base:Task"),
    "models": ("model", "tokenprune.models.base:ModelSpec"),
}

_builtin_only: ContextVar[bool] = ContextVar("tokenprune_builtin_only", default=False)


@contextmanager
def builtin_only() -> Iterator[None]:
    """Ignore every plugin inside the block: only tokenprune's own components exist."""
    token = _builtin_only.set(True)
    try:
        yield
    finally:
        _builtin_only.reset(token)


def registry(kind: str) -> Registry[Any]:
    """The registry of one kind (``"scorers"``, ``"selectors"``, ``"pruners"`` ...)."""
    return _registry(kind, own_only())


def own_only() -> bool:
    """Whether plugins are switched off."""
    return _builtin_only.get() or os.environ.get("TOKENPRUNE_NO_PLUGINS", "") not in ("", "0")


def discover_visible(group: str) -> list[Entry]:
    """The entries of one entry-point group, without plugins while they are switched off."""
    return discover(group, own_only())


def refresh() -> None:
    """Forget what was discovered, e.g. after installing a plugin in the running process."""
    _registry.cache_clear()


@functools.cache
def _registry(kind: str, builtin: bool) -> Registry[Any]:
    word, target = KINDS[kind]
    module, _, attribute = target.partition(":")
    base = getattr(importlib.import_module(module), attribute)
    return Registry(word, base, discover(f"tokenprune.{kind}", builtin))


def discover(group: str, builtin: bool = False) -> list[Entry]:
    """The entries of one entry-point group, own ones first, then by distribution.

    Args:
        group: The entry-point group, e.g. ``"tokenprune.scorers"``.
        builtin: Leave out what other distributions registered.
    """
    found = []
    seen: set[tuple[str, str, str]] = set()
    for point in metadata.entry_points(group=group):
        owner = point.dist.name if point.dist is not None else "unknown distribution"
        key = (point.name, point.value, owner)
        if key in seen or (builtin and owner != DISTRIBUTION):  # an editable install can be listed twice
            continue
        seen.add(key)
        found.append(Entry(name=point.name, target=point.value, distribution=owner, load=point.load))
    return sorted(found, key=lambda entry: (entry.distribution != DISTRIBUTION, entry.distribution, entry.name))
