"""``tokenprune list``."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from tokenprune.cli.printing import AsJson, print_json, print_lines, print_table
from tokenprune.core import plugins
from tokenprune.core.registry import Entry, suggest
from tokenprune.core.sources import first_line
from tokenprune.errors import ConfigError, TokenPruneError
from tokenprune.methods.files import ShippedFile, shipped_files
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


def list(  # the command's name
    kind: Annotated[str | None, typer.Argument(help="One kind: scorers, selectors, pruners, methods ...")] = None,
    as_json: AsJson = False,
) -> None:
    """List all installed components with their distributions."""
    kinds = [*plugins.COMPONENT_KINDS, "methods"]
    if kind is not None and kind not in kinds:
        raise ConfigError(f"unknown kind {kind!r}", suggest(kind, kinds).replace("installed", "kinds"))
    found = {name: listed(name) for name in (kinds if kind is None else [kind])}
    if as_json:
        print_json([asdict(row) for rows in found.values() for row in rows])
        return
    for name, rows in found.items():
        print_lines(name)
        print_table(fill(name, COLUMNS, rows))
        print_lines("")
    print_lines("Read from files, not imported.", "`tokenprune doctor` imports each, and says which fail.")


def listed(kind: str, check: bool = False) -> Sequence[Listed]:
    """The components of a kind, or the methods.

    Args:
        kind: The kind, or ``methods``.
        check: Import each, to see whether it can be used; else most are read from their files.
    """
    if kind != "methods":
        return _components(kind, check)
    if not check:
        return sorted(map(_method, shipped_files()), key=lambda row: (row.name, row.distribution))
    from tokenprune.methods.named import list_methods

    return [Listed(kind, it.name, it.distribution, it.description, it.problem) for it in list_methods()]


def _components(kind: str, check: bool) -> Sequence[Listed]:
    entries = sorted(plugins.discover_visible(f"tokenprune.{kind}"), key=lambda entry: entry.name)
    names = Counter(entry.name for entry in entries)
    return [
        Listed(kind, entry.name, entry.distribution, *_component(kind, entry, check or names[entry.name] > 1))
        for entry in entries
    ]


def _component(kind: str, entry: Entry, check: bool) -> tuple[str, str | None]:
    """The description of a component, and why it cannot be used; what has no file of its own is imported."""
    with suppress(LookupError):
        description = first_line(entry.target)
        if not check:
            return description, None
    try:
        return (plugins.registry(kind).get(entry.name).__doc__ or "").strip().partition("\n")[0], None
    except TokenPruneError as error:
        return "", str(error)


def _method(found: ShippedFile) -> Listed:
    try:
        description, problem = ("", found.problem) if found.file is None else (found.description(), None)
    except ConfigError as error:
        description, problem = "", str(error)
    return Listed("methods", found.name, found.distribution, description, problem)
