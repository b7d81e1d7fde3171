"""``tokenprune schema``."""

from pathlib import Path
from typing import Annotated

import typer

from tokenprune.cli.outputs import check_writable
from tokenprune.cli.printing import print_written
from tokenprune.core.text import write_file


def schema(
    output: Annotated[Path | None, typer.Option(help="Write the schema to this file instead of the screen.")] = None,
) -> None:
    """Print the JSON schema of experiment files, for editors."""
    from tokenprune.experiment.config import json_schema

    if output is None:
        print(json_schema())
        return
    check_writable(output)
    write_file(output, json_schema() + "\n")
    print_written([output])
