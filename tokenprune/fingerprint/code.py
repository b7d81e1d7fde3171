"""The installed version of a component's code, as a short text."""

import ast
import hashlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import metadata
from importlib.util import find_spec, module_from_spec, resolve_name
from pathlib import Path
from types import ModuleType

from tokenprune.core.component import Component
from tokenprune.core.plugins import registry


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
    """A module, and those of the same package that it imports, directly or not: their names, and their sources."""
    waiting, seen = [start], {start}
    while waiting:
        name = waiting.pop()
        module = _module(name)
        source = _source(module)
        yield name, source
        package = getattr(module, "__package__", None)
        if package and source is not None:
            near = {other for other in _imports(source, package) if _is_in(other, package)}
            waiting += sorted(near - seen)
            seen |= near


@cache
def _imports(source: bytes, package: str) -> frozenset[str]:
    """Names of what a source imports, in functions, too: modules, and what stands in them.

    They are read from the source: a constant that was imported does not say where it is from.
    """
    found: set[str] = set()
    with suppress(SyntaxError):  # it was changed after it was imported
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = resolve_name("." * node.level + (node.module or ""), package)
                found.update((base, *(f"{base}.{alias.name}" for alias in node.names)))
    return frozenset(found)


def _is_in(name: str, package: str) -> bool:
    """Whether it is a module of a package; modules of packages inside it are not."""
    near = name == package or name.rpartition(".")[0] == package
    return near and getattr(_module(name), "__package__", None) == package


def _module(name: str) -> ModuleType | None:
    """A module; it does not run if nothing has imported it yet. None if there is none of this name."""
    if name not in sys.modules:
        with suppress(ImportError, ValueError):
            spec = find_spec(name)
            return module_from_spec(spec) if spec is not None else None
    return sys.modules.get(name)


def _source(module: ModuleType | None) -> bytes | None:
    try:
        file = inspect.getsourcefile(module) if module is not None else None
        return Path(file).read_bytes() if file is not None else None
    except (OSError, TypeError):
        return None
