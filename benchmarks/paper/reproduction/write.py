"""The command that writes docs/paper.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tokenprune.errors import ConfigError, MissingDataError

from .page import generated, plans
from .plan import ROOT

PAGE = ROOT / "docs" / "paper.md"
BEGIN = "<!-- what follows is written by benchmarks/paper/page.py -->"


def main(description: str, arguments: Sequence[str] | None = None) -> None:
    """Write the page.

    Args:
        description: The text of the help.
        arguments: The command line; by default that of the process.

    Raises:
        TokenPruneError: There is no folder of results, it has results of other settings, or the page lacks its mark.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="the folder of all tables, whose results are compared")
    parser.add_argument("--calibration", help="what the results were made with")
    parser.add_argument("--output", type=Path, default=PAGE, help="the page that is written")
    given = parser.parse_args(arguments)
    if given.results is not None and not given.results.is_dir():
        raise MissingDataError(f"there is no folder {given.results}", "give the --output of benchmarks/paper/run.py")
    own, mark, _ = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    if not mark:
        raise ConfigError(f"{PAGE} lacks the line {BEGIN!r}", "put it where the generated part begins")
    made = plans((given.results or ROOT / "results" / "paper").resolve(), given.calibration)
    text = generated(made, compare=given.results is not None)
    given.output.write_text(f"{own}{BEGIN}\n\n{text}", encoding="utf-8")
