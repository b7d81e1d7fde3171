"""Which version of a component's code is installed, as a short text."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType

from tokenprune.component import Component
from tokenprune.plugins import registry


def code_name(kind: str, cls: type[Component]) -> str:
    """A component's class in words, e.g. ``task 'vqa'``."""
    components = registry(kind)
    return f"{components.kind} {components.name_of(cls)!r}"


def code_version(kind: str, cls: type[Component]) -> str | None:
    """A text that changes with the code of a component's class, e.g. ``tokenprune-mllm 0.1.0, source 1f2e3d4c5b6a``.

    The source is that of the class, of the classes that it extends, and of what their modules import from their own
    package. What they import from elsewhere counts with the version of the distribution alone.

    Args:
        kind: The kind of the component, e.g. ``"metrics"``.
        cls: The class.

    Returns:
        The text; None if there is no source, e.g. of a class that was typed into a notebook.
    """
    components = registry(kind)
    digest = hashlib.blake2b(digest_size=6)
    classes = [base for base in cls.__mro__ if base not in Component.__mro__]
    files = {name: file for base in classes for name, file in _sources(base.__module__)}
    for name, file in sorted(files.items()):
        if file is None:
            return None
        digest.update(name.encode() + b"\0" + file + b"\0")
    owners = [entry.distribution for entry in components.entries(components.name_of(cls))]
    made = f"{owners[0]} {_version(owners[0])}, " if owners else ""
    return f"{made}source {digest.hexdigest()}"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "of an unknown version"


def _sources(start: str) -> Iterator[tuple[str, bytes | None]]:
    """A module, and those of the same package that it uses, directly or not: their names, and their sources."""
    waiting, seen = [start], {start}
    while waiting:
        name = waiting.pop()
        module = sys.modules.get(name)
        yield name, _source(module)
        if module is not None and module.__package__:
            near = {other for other in map(_home, _values(module)) if _package(other) == module.__package__}
            waiting += sorted(near - seen)
            seen |= near


def _values(module: ModuleType) -> list[object]:
    """What is imported into a module, or defined in it."""
    return [value for value in vars(module).values() if callable(value) or inspect.ismodule(value)]


def _home(value: object) -> str:
    """The module in which a function or class was defined; of a module its own name."""
    return str(getattr(value, "__module__", None) or getattr(value, "__name__", ""))


def _package(module: str) -> str | None:
    return getattr(sys.modules.get(module), "__package__", None)


def _source(module: ModuleType | None) -> bytes | None:
    try:
        file = inspect.getsourcefile(module) if module is not None else None
        return Path(file).read_bytes() if file is not None else None
    except (OSError, TypeError):
        return None
