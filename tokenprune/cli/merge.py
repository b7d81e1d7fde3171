"""``tokenprune merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenprune.cli.experiment import Output, finish, read_experiment
from tokenprune.cli.printing import AsJson
from tokenprune.experiment.merge import merge_shards
from tokenprune.experiment.part import Part


def merge(
    config: Annotated[Path, typer.Argument(help="The experiment file that the shards ran.")],
    output: Output = None,
    limit: Annotated[int | None, typer.Option(help="The --limit that the shards ran with.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="The --only that the shards ran with.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put the shards of an experiment together and write its tables."""
    finish(merge_shards(read_experiment(config, output), Part(limit, tuple(only or ()))), as_json)
