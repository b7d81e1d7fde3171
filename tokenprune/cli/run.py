"""``tokenprune run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tokenprune.cli.interrupt import kept_in, stoppable
from tokenprune.cli.options import ExecutorName, NumberOfWorkers, executor_of
from tokenprune.cli.outputs import check_folder
from tokenprune.cli.printing import AsJson, print_json, print_written, progress_console
from tokenprune.cli.progress import progress_bar
from tokenprune.core.document import read_yaml
from tokenprune.errors import ConfigError

if TYPE_CHECKING:  # helps answer at once: what needs torch is imported where it is used
    from tokenprune.experiment import ExperimentConfig, ExperimentResult


def run(
    config: Annotated[Path, typer.Argument(help="An experiment file (YAML).")],
    output: Annotated[Path | None, typer.Option(help="Output folder; replaces the one in the file.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first so many samples.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run only this method; repeat for several.")] = None,
    executor: ExecutorName = None,
    workers: NumberOfWorkers = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run, and about how long it would take.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run an experiment, or continue one that was stopped."""
    from tokenprune.experiment import run_experiment
    from tokenprune.experiment.part import Part

    experiment = read_experiment(config, output)
    part = Part(limit, tuple(only or ()))
    given = executor_of(executor)
    if dry_run:
        if given is not None or workers is not None:
            raise ConfigError("--dry-run runs in this process", "leave out --executor and --workers")
        from tokenprune.cli.as_json import plan_data
        from tokenprune.cli.tables import print_plan
        from tokenprune.experiment.dry_run import plan_experiment

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
    from tokenprune.experiment import ExperimentConfig

    document = read_yaml(config)
    found = ExperimentConfig.from_document(document if output is None else document.over({"output": str(output)}))
    check_folder(Path(found.output))
    return found


def finish(result: ExperimentResult, as_json: bool) -> None:
    """Write the report of an experiment, and print its main table."""
    from tokenprune.cli.as_json import experiment_data
    from tokenprune.cli.tables import print_result
    from tokenprune.experiment import write_report

    written = write_report(result)
    if as_json:
        print_json(experiment_data(result, written))
    else:
        print_result(result)
        print_written(written)
