"""A command whose errors about options name those that were meant."""

from __future__ import annotations

import difflib
from typing import Any

from typer.core import TyperCommand

from tokenprune.errors import ConfigError


class Command(TyperCommand):
    """A command that answers an unknown option with the options that it has instead, in one line.

    Options are near that have its word in their names, or a similar name: for ``--ratio`` these are
    ``--average-ratio`` and ``--keep-ratio``. The line says what the number of a budget counts.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See :meth:`typer.core.TyperCommand.parse_args`.

        Raises:
            ConfigError: The command has no option of a given name.
        """
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # the class of an unknown option moves between versions of typer
            unknown = getattr(error, "option_name", None)
            helps = {name: getattr(item, "help", "") for item in self.get_params(ctx) for name in item.opts}
            if unknown is None or unknown in helps:
                raise
            raise ConfigError(f"{self.name} has no option {unknown}", _instead(unknown, helps, self.name)) from None


def _instead(unknown: str, helps: dict[str, str], command: str | None) -> str:
    """What to write instead of an option that does not exist."""
    word = unknown.strip("-")
    words = {name: name.strip("-").split("-") for name in helps if name.startswith("--") and name != "--help"}
    near = [name for name in words if word in words[name]]
    near = near or difflib.get_close_matches(unknown, words, n=2, cutoff=0.7)
    if not near:
        return f"`tokenprune {command} --help` lists its options"
    return f"did you mean {' or '.join(name + _kind(helps[name]) for name in near)}?"


def _kind(text: str) -> str:
    """What the number of a budget counts, in brackets; nothing for other options."""
    return f" ({text.partition(';')[0].rstrip('.').removeprefix('Budget: ')})" if text.startswith("Budget: ") else ""
