"""The command line. Every command is one call into the library, plus printing."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from huggingface_hub.utils import logging as hub_logging
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from tokenprune.cli.budget import one_budget
from tokenprune.cli.failures import check_writable, reported, warnings_reported
from tokenprune.cli.look import check_outputs, in_words, look_methods, look_model, looks, read_prompt, write
from tokenprune.cli.methods import method_text
from tokenprune.cli.progress import progress_bar
from tokenprune.cli.report import make_reports
from tokenprune.cli.tables import (
    console,
    print_bench,
    print_estimate,
    print_plan,
    print_profile,
    print_result,
    print_tune,
    print_written,
)
from tokenprune.cli.tuning import QUESTION, tune_model, tune_settings, tune_task
from tokenprune.config import read_yaml
from tokenprune.core import plugins
from tokenprune.errors import ConfigError, TokenPruneError
from tokenprune.experiment import ExperimentConfig, ExperimentResult, run_experiment, write_report
from tokenprune.experiment.batches import Shard
from tokenprune.experiment.config import json_schema
from tokenprune.experiment.merge import merge_shards
from tokenprune.experiment.plan import plan_experiment
from tokenprune.experiment.profiling import profile_model
from tokenprune.experiment.runner import Part
from tokenprune.measure import bench_table
from tokenprune.measure.bench import BenchConfig, run_bench
from tokenprune.measure.estimate import estimate, read_config
from tokenprune.methods.named import NamedMethod, find_shipped, list_methods
from tokenprune.models.presets import PRESETS
from tokenprune.tuning import run_tune
from tokenprune.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Training-free visual token pruning of multimodal LLMs.",
)


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


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="An experiment file (YAML).")],
    output: Annotated[Path | None, typer.Option(help="Output folder; replaces the one in the file.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first so many samples.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run only this method; repeat for several.")] = None,
    shard: Annotated[str | None, typer.Option(help="Run only one of n parts, i/n; `merge` puts them together.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run, and about how long it would take.")
    ] = False,
) -> None:
    """Run an experiment, or continue one that was stopped."""
    experiment = _experiment(config, output)
    part = Part(limit, tuple(only or ()), Shard.parse(shard) if shard is not None else None)
    if dry_run:
        print_plan(plan_experiment(experiment, part))
        return
    with progress_bar(console) as show_progress:
        result = run_experiment(experiment, show_progress, part)
    _report(result)


@app.command()
def tune(
    config: Annotated[Path | None, typer.Argument(help="A tune's file (YAML); options replace what it says.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A checkpoint's folder or hub name, or the name of a model that a plugin brings.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="A folder of pictures, a file or dataset of questions, or the name of a task.")
    ] = None,
    question: Annotated[
        str | None, typer.Option(help=f"The question about pictures without one. [default: {QUESTION}]")
    ] = None,
    tokens: Annotated[
        list[int] | None, typer.Option(help="Budget: visual tokens averaged over all layers; repeat for several.")
    ] = None,
    average: Annotated[
        list[float] | None, typer.Option(help="The same budget as a share of the visual tokens; repeat for several.")
    ] = None,
    reduction: Annotated[
        list[float] | None,
        typer.Option(help="Budget: reduction of the prefill's FLOPs in percent; repeat for several."),
    ] = None,
    prefill: Annotated[
        list[float] | None,
        typer.Option("--time", help="Budget: measured prefill time as a share of the unpruned one's; repeat."),
    ] = None,
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
) -> None:
    """Find the method whose answers stay closest to the unpruned model's at a given cost, without labels."""
    budgets: list[dict[str, Any]] = [
        *({"name": "layer_average", "tokens": value} for value in tokens or ()),
        *({"name": "layer_average", "ratio": value} for value in average or ()),
        *({"name": "flops_reduction", "percent": value} for value in reduction or ()),
        *({"name": "prefill_time", "ratio": value} for value in prefill or ()),
    ]
    given = {
        "model": None if model is None else tune_model(model),
        "task": None if data is None else tune_task(data, question),
        "budgets": budgets or None,
        "methods": method or None,
        "samples": samples,
        "objective": objective,
        "labels": labels,
        "output": None if output is None else str(output),
    }
    settings = tune_settings(config, {name: value for name, value in given.items() if value is not None})
    with progress_bar(console) as show_progress:
        result = run_tune(settings, show_progress)
    print_tune(result)
    print_written(result.written)


@app.command()
def merge(
    config: Annotated[Path, typer.Argument(help="The experiment file that the shards ran.")],
    output: Annotated[Path | None, typer.Option(help="Output folder; replaces the one in the file.")] = None,
    limit: Annotated[int | None, typer.Option(help="The --limit that the shards ran with.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="The --only that the shards ran with.")] = None,
) -> None:
    """Put the shards of an experiment together and write its tables."""
    _report(merge_shards(_experiment(config, output), Part(limit, tuple(only or ()))))


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(help="Output folders of runs, or of a tune.")],
    output: Annotated[
        Path | None, typer.Option(help="Output folder. [default: the folder itself; for several folders: report]")
    ] = None,
    latex: Annotated[Path | None, typer.Option(help="Also write the table for a paper to this LaTeX file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write all numbers to this CSV file.")] = None,
    share: Annotated[
        bool, typer.Option("--share", help="In the LaTeX table, also give the share of the unpruned accuracy.")
    ] = False,
) -> None:
    """Make the reports of finished results again, or compare several. No model is loaded."""
    make_reports(results, output, latex, csv, share)


def _experiment(config: Path, output: Path | None) -> ExperimentConfig:
    data = read_yaml(config)
    if output is not None and isinstance(data, dict):
        data["output"] = str(output)
    return ExperimentConfig.from_dict(data, str(config))


def _report(result: ExperimentResult) -> None:
    written = write_report(result)
    print_result(result)
    print_written(written)


@app.command("list")
def list_components(
    kind: Annotated[str | None, typer.Argument(help="One kind: scorers, selectors, pruners, methods ...")] = None,
) -> None:
    """List all installed components with their distributions."""
    kinds = [*plugins.COMPONENT_KINDS, "methods"]
    if kind is not None and kind not in kinds:
        raise ConfigError(f"unknown kind {kind!r}", f"use one of {', '.join(kinds)}")
    for name in kinds if kind is None else [kind]:
        table = Table(box=None, header_style="bold", pad_edge=False, title=name, title_justify="left")
        table.add_column("name", no_wrap=True)
        table.add_column("distribution", no_wrap=True)
        table.add_column("description")
        for row in _methods() if name == "methods" else _components(name):
            table.add_row(*row)
        Console(width=max(console.width, 120)).print(table, "")


def _components(kind: str) -> list[tuple[str, str, str]]:
    registry = plugins.registry(kind)
    rows = []
    for name in registry.names():
        try:
            doc = (registry.get(name).__doc__ or "").strip().splitlines()
            description = doc[0] if doc else ""
        except TokenPruneError as error:
            description = f"BROKEN: {error}"
        rows += [(name, entry.distribution, description) for entry in registry.entries(name)]
    return rows


def _methods() -> list[tuple[str, str, str]]:
    return [
        (method.name, method.distribution, f"BROKEN: {method.problem}" if method.problem else method.description)
        for method in list_methods()
    ]


@app.command()
def show(
    method: Annotated[str, typer.Argument(help="A named method, or a YAML file with one.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Use the settings published for this model: a name that `show METHOD` lists, a preset, or a folder"
            " with a config.json."
        ),
    ] = None,
) -> None:
    """Print a method as YAML, with all fields, and the settings that its authors published for single models."""
    shipped = find_shipped(method)
    chosen = None if model is None else shipped.settings_for(_target(shipped, model))
    print(method_text(shipped, chosen), end="")


def _target(shipped: NamedMethod, model: str) -> Any:
    """What decides which of a method's published settings are used: an entry's name, or a config."""
    names = {entry.model.lower() for entry in shipped.published}
    readable = model in PRESETS or Path(model).exists()
    return read_config(model) if readable and model.lower() not in names else model


@app.command()
def schema(
    output: Annotated[Path | None, typer.Option(help="Write the schema to this file instead of the screen.")] = None,
) -> None:
    """Print the JSON schema of experiment files, for editors."""
    if output is None:
        print(json_schema())
        return
    check_writable(output)
    output.write_text(json_schema() + "\n", encoding="utf-8")
    console.print(f"written: {output}", highlight=False)


@app.command()
def profile(
    config: Annotated[
        Path, typer.Argument(help="An experiment file (YAML); its model, task and calibration are used.")
    ],
    output: Annotated[Path, typer.Option(help="File to write the profile to.")] = Path("profile.json"),
) -> None:
    """Measure a model's entropy curve, find where it collapses, and verify the methods whose layer selector does so."""
    experiment = ExperimentConfig.from_yaml(config)
    for end in ("", ".png", ".svg", ".pdf"):
        check_writable(output.with_suffix(end or output.suffix))
    measured = profile_model(experiment)
    print_profile(measured)  # first: it took long, and the disk may be full
    measured.profile.save(output)
    console.print(f"written: {output} ({len(measured.profile.curves)} samples)", highlight=False)
    try:
        from tokenprune.experiment.profile_plot import profile_plot
    except ImportError as error:
        print(f"no picture was drawn ({error}); pip install 'tokenprune-mllm[report]'", file=sys.stderr)
    else:
        print_written(profile_plot(measured, output.with_suffix(".png")))


@app.command()
def look(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Pictures and videos of one prompt.")],
    question: Annotated[str, typer.Option(help="The question about them.")],
    model: Annotated[
        str, typer.Option(help="A checkpoint's folder or hub name, or the name of a model that a plugin brings.")
    ],
    method: Annotated[
        list[str] | None, typer.Option(help="A named method, or a YAML file with one; repeat to compare several.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Budget: visual tokens averaged over all layers.")] = None,
    average: Annotated[float | None, typer.Option(help="The same budget as a share of the visual tokens.")] = None,
    keep: Annotated[int | None, typer.Option(help="Budget: visual tokens kept after the last stage.")] = None,
    ratio: Annotated[float | None, typer.Option(help="Budget: share of the visual tokens kept.")] = None,
    expected: Annotated[str | None, typer.Option(help="The expected answer, to mark right and wrong ones.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")] = 32,
    frames: Annotated[int, typer.Option(min=1, help="Frames taken from a video, at even distances.")] = 8,
    output: Annotated[
        list[Path] | None, typer.Option("--output", "-o", help="The figure: .png, .svg or .pdf; repeat for several.")
    ] = None,
) -> None:
    """Draw which patches methods keep of a picture, what their scores saw, and what the model answers."""
    budget, fields = one_budget({"--tokens": tokens, "--average": average, "--keep": keep, "--ratio": ratio})
    methods = look_methods(method or (), budget, fields)
    paths = output or [Path("look.png")]
    check_outputs(paths)
    spec = look_model(model)
    prompt = read_prompt(images, question, expected, frames, max_new_tokens)
    shown = looks(spec.load(), methods, prompt)
    write(shown, paths)
    for item in shown:
        print(in_words(item))
    for path in paths:
        console.print(f"written: {path}", highlight=False)


@app.command()
def flops(
    model: Annotated[str, typer.Option(help="A preset, or a folder with a config.json.")] = "llava-1.5-7b",
    method: Annotated[str, typer.Option(help="A named method, or a YAML file with one.")] = "entropyprune",
    published: Annotated[
        bool, typer.Option("--published", help="Use the method's settings that were published for the model.")
    ] = False,
    tokens: Annotated[int | None, typer.Option(help="Budget: visual tokens averaged over all layers.")] = None,
    keep: Annotated[int | None, typer.Option(help="Budget: visual tokens kept after the last stage.")] = None,
    ratio: Annotated[float | None, typer.Option(help="Budget: share of the visual tokens kept.")] = None,
    reduction: Annotated[
        float | None, typer.Option(help="Budget: reduction of the prefill's FLOPs in percent.")
    ] = None,
    visual_tokens: Annotated[
        int | None, typer.Option(help="Visual tokens of the prompt; presets have a default.")
    ] = None,
    text_tokens: Annotated[int, typer.Option(help="Text tokens of the prompt.")] = 60,
    counted: Annotated[
        bool, typer.Option("--counted", help="Also count the operations of the real architecture.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compute the FLOPs of a prefill, unpruned and pruned, by part of the model. No model is run or downloaded."""
    budget, fields = one_budget({"--tokens": tokens, "--keep": keep, "--ratio": ratio, "--reduction": reduction})
    shipped = find_shipped(method)
    settings = shipped.settings_for(read_config(model)) if published else None
    chosen = shipped.method(budget, model=settings.model if settings else None, **fields)
    result = estimate(model, chosen, text_tokens, visual_tokens, counted)
    if settings is not None:
        result["settings"] = settings.sentence
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        print_estimate(result)


@app.command()
def bench(
    model: Annotated[str, typer.Option(help="A preset, or a checkpoint's folder or hub name.")] = "llava-0.5b",
    method: Annotated[
        list[str] | None, typer.Option(help="A named method, a YAML file with one, or all; repeat for several.")
    ] = None,
    tokens: Annotated[
        list[int] | None, typer.Option(help="Budget: visual tokens averaged over all layers; repeat for several.")
    ] = None,
    average: Annotated[
        list[float] | None, typer.Option(help="The same budget as a share of the visual tokens; repeat for several.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch size; repeat for several.")] = None,
    text_tokens: Annotated[int, typer.Option(help="Text tokens per prompt.")] = 60,
    ragged: Annotated[
        bool, typer.Option("--ragged", help="Use prompts of different lengths, with one or two images.")
    ] = False,
    decode: Annotated[int, typer.Option(help="Decode steps after each prefill.")] = 16,
    rounds: Annotated[int, typer.Option(help="Timed rounds.")] = 7,
    warmup: Annotated[int, typer.Option(help="Untimed rounds before these.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (bfloat16), float32, bfloat16, float16.")] = "auto",
    attention: Annotated[str, typer.Option(help="sdpa, eager, flash_attention_2.")] = "sdpa",
    image_size: Annotated[int, typer.Option(help="Side in pixels of the images for a checkpoint.")] = 448,
    output: Annotated[Path | None, typer.Option(help="Write all measurements to this JSON file.")] = None,
) -> None:
    """Time methods against the unpruned model: prefill, decode, memory; paired rounds, medians with quartiles."""
    lists = {"methods": method, "tokens": tokens, "averages": average, "batches": batch}
    config = BenchConfig.from_dict(
        {
            "model": model,
            **{name: values for name, values in lists.items() if values},
            "text_tokens": text_tokens,
            "ragged": ragged,
            "decode": decode,
            "rounds": rounds,
            "warmup": warmup,
            "device": device,
            "dtype": dtype,
            "attention": attention,
            "image_size": image_size,
        },
        "bench",
    )
    if output is not None:
        check_writable(output)
        check_writable(output.with_suffix(".md"))
    with progress_bar(Console(stderr=True), width=20, transient=True) as show_progress:
        result = run_bench(config, show_progress)
    print_bench(result)
    if output is not None:
        bench_table.save(result, output)
        console.print(f"written: {output}", highlight=False)
