"""The command line: a thin layer over the library, a file per command."""

from tokenprune.cli.commands import app, main

__all__ = ["app", "main"]
