"""``tokenprune list``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tokenprune.cli.tables import console
from tokenprune.core import plugins
from tokenprune.errors import ConfigError, TokenPruneError
from tokenprune.methods.named import list_methods


def list_components(
    kind: Annotated[str | None, typer.Argument(help="One kind: scorers, selectors, pruners, methods ...")] = None,
) -> None:
    """List all installed components with their distributions."""
    kinds = [*plugins.COMPONENT_KINDS, "methods"]
    if kind is not None and kind not in kinds:
        raise ConfigError(f"unknown kind {kind!r}", f"use one of {', '.join(kinds)}")
    for name in kinds if kind is None else [kind]:
        table = Table(box=None, header_style="bold", pad_edge=False, title=name, title_justify="left")
        table.add_column("name", no_wrap=True)
        table.add_column("distribution", no_wrap=True)
        table.add_column("description")
        for row in _methods() if name == "methods" else _components(name):
            table.add_row(*row)
        Console(width=max(console.width, 120)).print(table, "")


def _components(kind: str) -> list[tuple[str, str, str]]:
    registry = plugins.registry(kind)
    rows = []
    for name in registry.names():
        try:
            description = (registry.get(name).__doc__ or "").strip().partition("\n")[0]
        except TokenPruneError as error:
            description = f"BROKEN: {error}"
        rows += [(name, entry.distribution, description) for entry in registry.entries(name)]
    return rows


def _methods() -> list[tuple[str, str, str]]:
    return [
        (method.name, method.distribution, f"BROKEN: {method.problem}" if method.problem else method.description)
        for method in list_methods()
    ]
