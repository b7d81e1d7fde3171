"""The parser: a list of commands, each with its arguments in a file of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated

import typer
from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging

from tokenprune.cli.bench import bench
from tokenprune.cli.data import data
from tokenprune.cli.export import export
from tokenprune.cli.failures import reported, warnings_reported
from tokenprune.cli.flops import flops
from tokenprune.cli.list import list_components
from tokenprune.cli.look import look
from tokenprune.cli.merge import merge
from tokenprune.cli.profile import profile
from tokenprune.cli.report import report
from tokenprune.cli.run import run
from tokenprune.cli.schema import schema
from tokenprune.cli.show import show
from tokenprune.cli.tune import tune
from tokenprune.cli.usage import Command, Commands
from tokenprune.version import __version__

#: In the order of ``tokenprune --help``.
COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "tune": tune,
    "merge": merge,
    "report": report,
    "data": data,
    "list": list_components,
    "show": show,
    "export": export,
    "schema": schema,
    "profile": profile,
    "look": look,
    "flops": flops,
    "bench": bench,
}

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Training-free visual token pruning of multimodal LLMs.",
)
for name, command in COMMANDS.items():
    app.command(name, cls=Command)(command)


def main() -> None:
    """Entry point of the command ``tokenprune``."""
    logging.set_verbosity_error()  # transformers' own warnings and progress bars
    logging.disable_progress_bar()
    hub_logging.set_verbosity_error()  # a line for each try to reach the hub
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
