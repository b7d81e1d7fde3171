"""Mistakes in the words of a command, as one line like all others."""

import difflib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from tokenprune.core.sources import first_line
from tokenprune.errors import ConfigError


class Commands(TyperGroup):
    """The commands. What the parser refuses is an error of ours: no such command, a missing argument, no number ..."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`typer.core.TyperGroup.make_context`.

        Raises:
            ConfigError: An option before the command is wrong.
        """
        with _in_one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`typer.core.TyperGroup.invoke`.

        Raises:
            ConfigError: There is no such command, or its arguments are wrong.
        """
        with _in_one_line():
            return super().invoke(*args, **kwargs)


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the parser's classes move between versions of typer
        say = getattr(error, "format_message", None)
        message = " ".join(say().split()).rstrip(".") if callable(say) else ""
        if not message:  # another error, or the help that stands for no arguments
            raise
        context = getattr(error, "ctx", None)
        command = "" if context is None or context.parent is None else f" {context.info_name}"
        raise ConfigError(message, f"see `tokenprune{command} -h`") from None


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


class LaterCommand(TyperCommand):
    """A command whose file, ``tokenprune/cli/NAME.py``, is imported when it is used.

    The help of all commands needs their names and first sentences alone: importing torch takes seconds.

    Args:
        name: Its name, which is that of its file and of the function in it.
        panel: The group of commands in which the help shows it.
    """

    def __init__(self, name: str, panel: str) -> None:
        super().__init__(name, help=first_line(f"tokenprune.cli.{name}:{name}"), rich_help_panel=panel)

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """See :meth:`typer.core.TyperCommand.make_context`; the context is that of the imported command."""
        return self.imported().make_context(*args, **kwargs)

    def imported(self) -> Any:
        """The command itself."""
        assert self.name is not None
        alone = typer.Typer(add_completion=False)
        module = importlib.import_module(f"tokenprune.cli.{self.name}")
        alone.command(self.name, cls=Command)(getattr(module, self.name))
        return typer.main.get_command(alone)


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
