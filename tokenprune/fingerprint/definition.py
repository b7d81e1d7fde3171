"""Definitions of methods, with which results are stored: their fields, and the versions of their code."""

from collections.abc import Iterator, Mapping
from typing import Any

from tokenprune.core.component import Component
from tokenprune.core.plugins import registry
from tokenprune.fingerprint.code import code_name, code_version

#: The kinds of components that a method is made of.
KINDS = ("selectors", "pruners", "scorers", "budgets")
#: The key of a definition that holds the versions.
CODE = "code"

Definition = dict[str, Any] | None


def with_code(definitions: Mapping[str, Definition], methods: Mapping[str, Any]) -> dict[str, Definition]:
    """Definitions with the versions of the code of their methods.

    Args:
        definitions: Fields of methods, JSON-ready, by name.
        methods: The methods by the same names; a definition without one stays as it is.
    """
    versions: dict[type[Component], tuple[str, str | None]] = {}  # methods share components
    found = dict(definitions)
    for name, definition in definitions.items():
        if definition is not None and methods.get(name) is not None:
            found[name] = definition | _code_of(methods[name], versions)
    return found


def what_differs(stored: Definition, now: Definition) -> str | None:
    """Say how two definitions differ; None where no difference is known.

    Versions of code that one of the two does not know are no difference: folders of older versions have none.
    """
    if _without_code(stored) != _without_code(now):
        return "another definition"
    old, new = _code(stored), _code(now)
    for name in old.keys() & new.keys():
        if old[name] and new[name] and old[name] != new[name]:
            return f"another version of the {name}: {old[name]} there, {new[name]} now"
    return None


def _code_of(method: Any, versions: dict[type[Component], tuple[str, str | None]]) -> dict[str, Any]:
    used = {type(part) for part in _parts(method)}
    for cls in used - versions.keys():
        kind = next(kind for kind in KINDS if issubclass(cls, registry(kind).base))
        versions[cls] = code_name(kind, cls), code_version(kind, cls)
    return {CODE: dict(sorted(versions[cls] for cls in used))}


def _parts(value: Any) -> Iterator[Component]:
    """The components in a method, however deep: a pruner's scorer, the scorers of a combination."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item)
    elif isinstance(value, Component):
        if issubclass(type(value), tuple(registry(kind).base for kind in KINDS)):
            yield value
        for name in type(value).model_fields:
            yield from _parts(getattr(value, name))


def _code(definition: Definition) -> Mapping[str, str | None]:
    return (definition or {}).get(CODE) or {}


def _without_code(definition: Definition) -> Definition:
    return definition and {key: value for key, value in definition.items() if key != CODE}
