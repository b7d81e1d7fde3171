"""A registry of named classes of one kind. It imports lazily, checks types and reports collisions."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from tokenprune.errors import PluginError, UnknownNameError

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One registered name.

    Attributes:
        name: The name that configs use.
        target: Location of the class, as ``module:attribute``.
        distribution: The installed distribution that registered it.
        load: Imports and returns the object; may raise any exception.
    """

    name: str
    target: str
    distribution: str
    load: Callable[[], object]


class Registry(Generic[T]):
    """The installed components of one kind.

    A component is imported when it is first used, so a broken plugin affects only configs that name it.

    Args:
        kind: The kind in the singular, for messages, e.g. ``"scorer"``.
        base: The class that every entry must derive from.
        entries: The registered entries, in order of discovery.
    """

    def __init__(self, kind: str, base: type[T], entries: Iterable[Entry]) -> None:
        self.kind = kind
        self.base = base
        self._entries: dict[str, list[Entry]] = {}
        for entry in entries:
            self._entries.setdefault(entry.name, []).append(entry)
        self._loaded: dict[str, type[T]] = {}

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._entries)

    def entries(self, name: str) -> list[Entry]:
        """The entries of one name. More than one is a collision."""
        return list(self._entries.get(name, ()))

    def get(self, name: str) -> type[T]:
        """The class of that name.

        Raises:
            UnknownNameError: No such name; the message suggests near ones.
            PluginError: Two distributions registered the name, the class cannot be imported, is of another kind,
                or lacks methods.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def name_of(self, cls: type) -> str:
        """The registered name of a class; for an unregistered class its qualified name."""
        target = f"{cls.__module__}:{cls.__qualname__}"
        for name, entries in self._entries.items():
            if self._loaded.get(name) is cls or any(entry.target == target for entry in entries):
                return name
        return target

    def describe(self, cls: type) -> str:
        """A class in words for messages: its kind, its name and the distribution that registered it."""
        name = self.name_of(cls)
        owners = [entry.distribution for entry in self.entries(name)]
        return f"{self.kind} {name!r} of {owners[0]}" if owners else f"{self.kind} {name} (not registered)"

    def _load(self, name: str) -> type[T]:
        entries = self._entries.get(name)
        if not entries:
            raise UnknownNameError(f"unknown {self.kind} {name!r}", suggest(name, self.names()))
        if len(entries) > 1:
            owners = " and ".join(f"{entry.distribution} ({entry.target})" for entry in entries)
            raise PluginError(f"{self.kind} {name!r} is registered twice, by {owners}", "uninstall one of them")
        entry = entries[0]
        try:
            loaded = entry.load()
        except Exception as error:
            raise PluginError(
                f"{self.kind} {name!r} of {entry.distribution} cannot be imported from {entry.target}"
                f" ({type(error).__name__}: {error})",
                f"repair or uninstall {entry.distribution}",
            ) from error
        if not (isinstance(loaded, type) and issubclass(loaded, self.base)):
            raise PluginError(
                f"{self.kind} {name!r} of {entry.distribution} ({entry.target}) is not a {self.base.__name__}",
                f"derive it from {self.base.__module__}.{self.base.__name__}",
            )
        if inspect.isabstract(loaded):
            missing = ", ".join(sorted(vars(loaded)["__abstractmethods__"]))
            raise PluginError(
                f"{self.kind} {name!r} of {entry.distribution} ({entry.target}) lacks {missing}",
                f"write what {self.base.__module__}.{self.base.__name__} declares",
            )
        return loaded


def suggest(name: str, names: Iterable[str]) -> str:
    """The hint of an "unknown name" message: similar names, if any, and all installed names."""
    names = sorted(names)
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    listing = ", ".join(names) or "none"
    return f"did you mean {' or '.join(map(repr, near))}? (installed: {listing})" if near else f"installed: {listing}"
