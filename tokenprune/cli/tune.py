"""``tokenprune tune``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenprune.cli.interrupt import kept_in, stoppable
from tokenprune.cli.options import (
    MODEL,
    Device,
    ExecutorName,
    NumberOfWorkers,
    Precision,
    budget_option,
    budgets,
    executor_of,
    options_of,
)
from tokenprune.cli.outputs import check_folder
from tokenprune.cli.printing import AsJson, print_json, print_written, progress_console
from tokenprune.cli.progress import progress_bar
from tokenprune.core.document import Document, read_yaml
from tokenprune.core.plugins import registry
from tokenprune.errors import ConfigError

if TYPE_CHECKING:  # helps answer at once: what needs torch is imported where it is used
    from tokenprune.tuning import TuneConfig

#: The question about the pictures of a folder, if the user asks none.
QUESTION = "What does this picture show?"


def tune(
    config: Annotated[Path | None, typer.Argument(help="A tune's file (YAML); options replace what it says.")] = None,
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    data: Annotated[
        str | None, typer.Option(help="A folder of pictures, a file or dataset of questions, or the name of a task.")
    ] = None,
    question: Annotated[
        str | None, typer.Option(help=f"The question about pictures without one. [default: {QUESTION}]")
    ] = None,
    average_tokens: Annotated[list[int] | None, budget_option("average_tokens", several=True)] = None,
    average_ratio: Annotated[list[float] | None, budget_option("average_ratio", several=True)] = None,
    flops_reduction: Annotated[list[float] | None, budget_option("flops_reduction", several=True)] = None,
    prefill_time: Annotated[list[float] | None, budget_option("prefill_time", several=True)] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="A candidate: a named method, or a YAML file with one; repeat for several.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="How many samples. [default: 64]")] = None,
    objective: Annotated[
        str | None, typer.Option(help="What is compared: root_divergence (default), agreement, divergence or distance.")
    ] = None,
    labels: Annotated[
        bool | None, typer.Option("--labels", help="Compare the score of generated answers, which needs labels.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Output folder. [default: results/tune]")] = None,
    device: Device = None,
    dtype: Precision = None,
    executor: ExecutorName = None,
    workers: NumberOfWorkers = None,
    as_json: AsJson = False,
) -> None:
    """Find the method whose answers stay closest to the unpruned model's at a given cost, without labels."""
    from tokenprune.cli.as_json import tune_data
    from tokenprune.cli.tables import print_tune
    from tokenprune.models.named import model_entry
    from tokenprune.tuning import run_tune

    if model is None and (device is not None or dtype is not None):
        raise ConfigError("--device and --dtype are for --model", "write them under model: in the file")
    given = {
        "model": None if model is None else model_entry(model, {"device": device, "dtype": dtype}),
        "task": None if data is None else task_entry(data, question),
        "budgets": budgets(
            average_tokens=average_tokens,
            average_ratio=average_ratio,
            flops_reduction=flops_reduction,
            prefill_time=prefill_time,
        )
        or None,
        "methods": method or None,
        "samples": samples,
        "objective": objective,
        "labels": labels,
        "output": None if output is None else str(output),
    }
    settings = tune_settings(config, {name: value for name, value in given.items() if value is not None})
    check_folder(Path(settings.output))
    with stoppable(kept_in(settings.output)), progress_bar(progress_console(as_json)) as show_progress:
        result = run_tune(settings, show_progress, executor=executor_of(executor), workers=workers)
    if as_json:
        print_json(tune_data(result, result.written))
    else:
        print_tune(result)
        print_written(result.written)


def task_entry(data: str, question: str | None) -> dict[str, Any]:
    """The entry of a config for a task: a registered one, or the user's own pictures or questions.

    Raises:
        ConfigError: A question was given for a task that has its own.
    """
    if data in registry("tasks").names():
        if question is not None:
            raise ConfigError(f"the task {data!r} has its own questions", "leave --question out")
        return {"name": data}
    if question is None and Path(data).expanduser().is_dir():
        question = QUESTION
    return {"name": "vqa", "data": data, **({"question": question} if question is not None else {})}


def tune_settings(config: Path | None, given: Mapping[str, Any]) -> TuneConfig:
    """The tune of a file with the options in place of what it says, or of the options alone.

    Args:
        config: The file, or None.
        given: The fields that options state.

    Raises:
        ConfigError: Neither states the model, the data or a budget, or something stated is wrong.
        MissingDataError: The file cannot be read.
    """
    from tokenprune.tuning import TuneConfig

    document = Document({}, "tune") if config is None else read_yaml(config)
    if isinstance(document.data, Mapping):
        if "budgets" in given:
            kept = {name: value for name, value in document.data.items() if name != "budget"}
            document = replace(document, data=kept)
        document = document.over(given)
        for field, name, options in (
            ("model", "model", "--model"),
            ("task", "data", "--data"),
            ("budgets", "budgets", options_of("average_tokens", "average_ratio", "flops_reduction", "prefill_time")),
        ):
            if config is None and field not in document.data:
                raise ConfigError(f"tune: no {name}", f"give {options}, or a file")
    return TuneConfig.from_document(document)
