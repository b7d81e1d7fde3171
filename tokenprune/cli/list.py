"""``tokenprune list``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from tokenprune.cli.as_json import AsJson, print_json
from tokenprune.cli.tables import print_lines, print_table
from tokenprune.core import plugins
from tokenprune.core.registry import suggest
from tokenprune.errors import ConfigError, TokenPruneError
from tokenprune.methods.named import list_methods
from tokenprune.tables.column import Column, fill, text


@dataclass(frozen=True)
class Listed:
    """A row.

    Attributes:
        kind: The kind of the component, or ``methods``.
        name: Its name.
        distribution: The distribution that it comes from.
        description: One sentence; empty for a broken one.
        problem: Why it cannot be used; None if it can.
    """

    kind: str
    name: str
    distribution: str
    description: str
    problem: str | None = None


COLUMNS: tuple[Column[Listed], ...] = (
    text("name", lambda row: row.name),
    text("distribution", lambda row: row.distribution).ranked(1),
    text("description", lambda row: row.description if row.problem is None else f"BROKEN: {row.problem}"),
)


def list_components(
    kind: Annotated[str | None, typer.Argument(help="One kind: scorers, selectors, pruners, methods ...")] = None,
    as_json: AsJson = False,
) -> None:
    """List all installed components with their distributions."""
    kinds = [*plugins.COMPONENT_KINDS, "methods"]
    if kind is not None and kind not in kinds:
        raise ConfigError(f"unknown kind {kind!r}", suggest(kind, kinds).replace("installed", "kinds"))
    found = {name: _methods() if name == "methods" else _components(name) for name in kinds if kind in (None, name)}
    if as_json:
        print_json([asdict(row) for rows in found.values() for row in rows])
        return
    for name, rows in found.items():
        print_lines(name)
        print_table(fill(name, COLUMNS, rows))
        print_lines("")


def _components(kind: str) -> list[Listed]:
    registry = plugins.registry(kind)
    rows = []
    for name in registry.names():
        description, problem = "", None
        try:
            description = (registry.get(name).__doc__ or "").strip().partition("\n")[0]
        except TokenPruneError as error:
            problem = str(error)
        rows += [Listed(kind, name, entry.distribution, description, problem) for entry in registry.entries(name)]
    return rows


def _methods() -> list[Listed]:
    return [
        Listed("methods", method.name, method.distribution, method.description, method.problem)
        for method in list_methods()
    ]
