"""Named methods: YAML files that distributions ship, found through the entry-point group ``tokenprune.methods``.

An entry point of that group names a package; every ``*.yaml`` in it is a method::

    description: what it does, in one sentence
    paper: title (arXiv id)
    method: {layers: {...}, pruner: {...}, budget: {...}}
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from types import ModuleType
from typing import Any

import yaml

from tokenprune import plugins
from tokenprune.config import Method
from tokenprune.errors import ConfigError, PluginError, UnknownNameError
from tokenprune.registry import suggest


@dataclass(frozen=True)
class NamedMethod:
    """A method by name.

    Attributes:
        name: The file's name without its suffix.
        distribution: The distribution that ships it.
        data: The file's content; empty where it cannot be read.
        problem: Why it cannot be used, or None.
    """

    name: str
    distribution: str
    data: dict[str, Any]
    problem: str | None = None

    @property
    def description(self) -> str:
        """What the method does, in one sentence."""
        return str(self.data.get("description", ""))

    @property
    def paper(self) -> str:
        """Where it comes from."""
        return str(self.data.get("paper", ""))


def list_methods() -> list[NamedMethod]:
    """All named methods that are installed, broken ones with their problem."""
    return sorted(_discover(), key=lambda method: (method.name, method.distribution))


def load_method(name: str, budget: str | None = None, **fields: Any) -> Method:
    """A named method, with another budget if one is given.

    Args:
        name: Its name, e.g. ``"entropyprune"``.
        budget: Name of another budget; by default the method's own kind.
        fields: The budget's fields, e.g. ``tokens=128``; they replace those of the file.

    Raises:
        UnknownNameError: No such method.
        PluginError: Two distributions ship it, or its file is broken.
        ConfigError: The budget's fields are wrong.
    """
    found = [method for method in _discover() if method.name == name]
    if not found:
        raise UnknownNameError(f"unknown method {name!r}", suggest(name, {method.name for method in _discover()}))
    if len(found) > 1:
        owners = " and ".join(method.distribution for method in found)
        raise PluginError(f"method {name!r} is shipped twice, by {owners}", "uninstall one of them")
    method = found[0]
    if method.problem is not None:
        raise PluginError(
            f"method {name!r} of {method.distribution} cannot be read ({method.problem})",
            f"repair or uninstall {method.distribution}",
        )
    data = {"label": name, **method.data["method"]}
    if budget is not None or fields:
        own = data["budget"] if isinstance(data.get("budget"), dict) else {"name": data.get("budget")}
        data["budget"] = {"name": budget or own["name"], **fields}
    return Method.from_dict(data, f"method {name!r}")


def _discover() -> Iterator[NamedMethod]:
    for entry in plugins.discover_visible("tokenprune.methods"):
        try:
            package = entry.load()
            if not isinstance(package, ModuleType):
                raise ConfigError(f"{entry.target} is no package")
            files = sorted(resources.files(package).iterdir(), key=lambda file: file.name)
        except Exception as error:
            yield NamedMethod(entry.name, entry.distribution, {}, f"{entry.target}: {error}")
            continue
        for file in files:
            if file.name.endswith(".yaml"):
                yield _read(file, entry.distribution)


def _read(file: Traversable, distribution: str) -> NamedMethod:
    name = file.name.removesuffix(".yaml")
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        return NamedMethod(name, distribution, {}, " ".join(str(error).split()))
    if not isinstance(data, dict) or not isinstance(data.get("method"), dict):
        return NamedMethod(name, distribution, {}, f"{file.name} has no mapping 'method'")
    return NamedMethod(name, distribution, data)
