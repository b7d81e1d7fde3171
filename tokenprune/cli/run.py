"""``tokenprune run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenprune.cli.as_json import plan_data
from tokenprune.cli.executor import ExecutorOption, Workers, executor_of
from tokenprune.cli.experiment import Output, finish, read_experiment
from tokenprune.cli.interrupt import kept_in, stoppable
from tokenprune.cli.printing import AsJson, print_json, progress_console
from tokenprune.cli.progress import progress_bar
from tokenprune.cli.tables import print_plan
from tokenprune.errors import ConfigError
from tokenprune.experiment import run_experiment
from tokenprune.experiment.batches import Shard
from tokenprune.experiment.dry_run import plan_experiment
from tokenprune.experiment.part import Part, output_folder


def run(
    config: Annotated[Path, typer.Argument(help="An experiment file (YAML).")],
    output: Output = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first so many samples.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run only this method; repeat for several.")] = None,
    shard: Annotated[str | None, typer.Option(help="Run only one of n parts, i/n; `merge` puts them together.")] = None,
    executor: ExecutorOption = None,
    workers: Workers = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run, and about how long it would take.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run an experiment, or continue one that was stopped."""
    experiment = read_experiment(config, output)
    part = Part(limit, tuple(only or ()), Shard.parse(shard) if shard is not None else None)
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
    with stoppable(kept_in(output_folder(experiment, part))):
        with progress_bar(progress_console(as_json)) as show_progress:
            result = run_experiment(experiment, show_progress, part, given, workers)
        finish(result, as_json)
