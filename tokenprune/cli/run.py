"""``tokenprune run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from tokenprune.cli.as_json import experiment_data, plan_data
from tokenprune.cli.interrupt import kept_in, stoppable
from tokenprune.cli.outputs import check_folder
from tokenprune.cli.printing import AsJson, print_json, print_written, progress_console
from tokenprune.cli.progress import progress_bar
from tokenprune.cli.tables import print_plan, print_result
from tokenprune.core.document import read_yaml
from tokenprune.core.text import one_line
from tokenprune.errors import ConfigError
from tokenprune.experiment import ExperimentConfig, ExperimentResult, run_experiment, write_report
from tokenprune.experiment.dry_run import plan_experiment
from tokenprune.experiment.part import Part


def run(
    config: Annotated[Path, typer.Argument(help="An experiment file (YAML).")],
    output: Annotated[Path | None, typer.Option(help="Output folder; replaces the one in the file.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first so many samples.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run only this method; repeat for several.")] = None,
    executor: Annotated[
        str | None,
        typer.Option(help="Share the work among workers: local, ray, submitit, or '{name: local, gpus: 2}'."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="How many workers. [default: one per GPU of the machine, or 1]")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run, and about how long it would take.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run an experiment, or continue one that was stopped."""
    experiment = read_experiment(config, output)
    part = Part(limit, tuple(only or ()))
    given = executor_of(executor)
    if dry_run:
        if given is not None or workers is not None:
            raise ConfigError("--dry-run runs in this process", "leave out --executor and --workers")
        plan = plan_experiment(experiment, part)
        if as_json:
            print_json(plan_data(plan))
        else:
            print_plan(plan)
        return
    with stoppable(kept_in(Path(experiment.output))):
        with progress_bar(progress_console(as_json)) as show_progress:
            result = run_experiment(experiment, show_progress, part, given, workers)
        finish(result, as_json)


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


def executor_of(text: str | None) -> Any:
    """What an option says of an executor: its name, or a mapping with its fields.

    Args:
        text: A name, or a mapping in YAML; None if the option is not given.

    Raises:
        ConfigError: It is no YAML.
    """
    if text is None:
        return None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--executor {text!r} is no YAML ({one_line(error)})", "write {name: local, gpus: 2}"
        ) from None
