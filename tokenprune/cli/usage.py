"""Mistakes in the words of a command, as one line like all others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperGroup

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
