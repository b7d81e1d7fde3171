"""The parser: a table of commands, each in a file of its own, which is imported when the command is used."""

import os
import sys
from contextlib import suppress
from typing import Annotated, Any

import typer

from tokenprune.cli.failures import reported, warnings_reported
from tokenprune.cli.usage import Commands, LaterCommand
from tokenprune.version import __version__

COMPARE, METHODS, MEASURE, START = "Compare methods", "See methods", "Measure", "Start, and mend"

#: In the order of ``tokenprune --help``.
COMMANDS = (
    LaterCommand("run", COMPARE),
    LaterCommand("tune", COMPARE),
    LaterCommand("report", COMPARE),
    LaterCommand("data", COMPARE),
    LaterCommand("list", METHODS),
    LaterCommand("show", METHODS),
    LaterCommand("look", METHODS),
    LaterCommand("export", METHODS),
    LaterCommand("schema", METHODS),
    LaterCommand("profile", MEASURE),
    LaterCommand("flops", MEASURE),
    LaterCommand("bench", MEASURE),
    LaterCommand("doctor", START),
)


class TokenPrune(Commands):
    """``tokenprune``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.commands = {command.name or "": command for command in COMMANDS}


app = typer.Typer(
    cls=TokenPrune,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Training-free visual token pruning of multimodal LLMs.",
)


def main() -> None:
    """Entry point of the command ``tokenprune``."""
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):  # warnings, and a line for each try to reach the hub
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if "--no-plugins" in sys.argv:
        sys.argv.remove("--no-plugins")
        os.environ["TOKENPRUNE_NO_PLUGINS"] = "1"
    with suppress(AttributeError):  # a stream of somebody's own
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names of files may be no UTF-8
    with reported(), warnings_reported():
        app()


def version(show: bool) -> None:
    """Print the version and exit."""
    if show:
        print(f"tokenprune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
    _no_plugins: Annotated[
        bool, typer.Option("--no-plugins", help="Ignore the components of other distributions.")
    ] = False,
) -> None:
    """Options of all commands."""
