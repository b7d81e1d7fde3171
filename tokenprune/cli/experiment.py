"""Arguments and output of the commands that end with an experiment's tables: ``run`` and ``merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenprune.cli.as_json import experiment_data
from tokenprune.cli.outputs import check_folder
from tokenprune.cli.printing import print_json, print_written
from tokenprune.cli.tables import print_result
from tokenprune.core.document import read_yaml
from tokenprune.experiment import ExperimentConfig, ExperimentResult, write_report

Output = Annotated[Path | None, typer.Option(help="Output folder; replaces the one in the file.")]


def read_experiment(config: Path, output: Path | None) -> ExperimentConfig:
    """The experiment of a file, with another output folder if one is given.

    Raises:
        ConfigError: The file holds no experiment.
        MissingDataError: It cannot be read.
        OutputError: The folder cannot stand where it shall.
    """
    document = read_yaml(config)
    found = ExperimentConfig.from_document(document if output is None else document.over({"output": str(output)}))
    check_folder(Path(found.output))
    return found


def finish(result: ExperimentResult, as_json: bool) -> None:
    """Write the report of an experiment, and print its main table."""
    written = write_report(result)
    if as_json:
        print_json(experiment_data(result, written))
    else:
        print_result(result)
        print_written(written)
