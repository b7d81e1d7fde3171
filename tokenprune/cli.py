"""The command line. Thin: every command is one call into the library."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tokenprune import plugins
from tokenprune.errors import ConfigError, TokenPruneError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Training-free visual token pruning of multimodal LLMs.",
)
console = Console()


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2, never a traceback."""
    quiet()
    if "--no-plugins" in sys.argv:
        sys.argv.remove("--no-plugins")
        os.environ["TOKENPRUNE_NO_PLUGINS"] = "1"
    try:
        app()
    except TokenPruneError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped; run the same command to go on", file=sys.stderr)
        raise SystemExit(130) from None


def quiet() -> None:
    """Keep the libraries' progress bars and advice off the screen."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def version(show: bool) -> None:
    """Print the version and stop."""
    if show:
        from tokenprune import __version__

        print(f"tokenprune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
    _no_plugins: Annotated[
        bool, typer.Option("--no-plugins", help="Ignore what other distributions register.")
    ] = False,
) -> None:
    """Options of every command."""


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="An experiment as YAML.")],
    output: Annotated[Path | None, typer.Option(help="Another output folder.")] = None,
) -> None:
    """Run an experiment, or go on with one that was stopped."""
    from tokenprune.config import read_yaml
    from tokenprune.experiment import ExperimentConfig, run_experiment, write_report

    data = read_yaml(config)
    if output is not None and isinstance(data, dict):
        data["output"] = str(output)
    experiment = ExperimentConfig.from_dict(data, str(config))
    columns = (TextColumn("{task.description:<36.36}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("loading", total=None)
        result = run_experiment(
            experiment, lambda name, done, total: bar.update(task, description=name, completed=done, total=total)
        )
    written = write_report(result)
    show_result(result)
    for path in written:
        console.print(f"written: {path}", highlight=False)


def show_result(result: Any) -> None:
    """The table on the screen."""
    from tokenprune.experiment.report import COLUMNS, cells, gates
    from tokenprune.experiment.summary import summarise

    lines = summarise(result)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in COLUMNS[:2] else "right", no_wrap=True)
    for line in lines:
        table.add_row(*cells(line))
    wide = Console(width=max(console.width, 175))
    wide.print(table)
    for sentence in gates(result, lines):
        console.print(sentence.replace("**", ""), highlight=False)


@app.command("list")
def list_components(
    kind: Annotated[str | None, typer.Argument(help="One kind: scorers, selectors, pruners, methods ...")] = None,
) -> None:
    """Every component that is installed, and where it comes from."""
    kinds = [*plugins.KINDS, "methods"]
    if kind is not None and kind not in kinds:
        raise ConfigError(f"unknown kind {kind!r}", f"use one of {', '.join(kinds)}")
    for name in kinds if kind is None else [kind]:
        table = Table(box=None, header_style="bold", pad_edge=False, title=name, title_justify="left")
        table.add_column("name", no_wrap=True)
        table.add_column("distribution", no_wrap=True)
        table.add_column("what it is")
        for row in _methods() if name == "methods" else _components(name):
            table.add_row(*row)
        Console(width=max(console.width, 120)).print(table, "")


def _components(kind: str) -> list[tuple[str, str, str]]:
    registry = plugins.registry(kind)
    rows = []
    for name in registry.names():
        try:
            doc = (registry.get(name).__doc__ or "").strip().splitlines()
            what = doc[0] if doc else ""
        except TokenPruneError as error:
            what = f"BROKEN: {error}"
        rows += [(name, entry.distribution, what) for entry in registry.entries(name)]
    return rows


def _methods() -> list[tuple[str, str, str]]:
    from tokenprune.named import list_methods

    return [
        (method.name, method.distribution, f"BROKEN: {method.problem}" if method.problem else method.description)
        for method in list_methods()
    ]


@app.command()
def show(method: Annotated[str, typer.Argument(help="A named method.")]) -> None:
    """A named method, spelled out as YAML."""
    from tokenprune.named import load_method

    print(load_method(method).to_yaml(), end="")


@app.command()
def schema(
    output: Annotated[Path | None, typer.Option(help="Write to a file instead of the screen.")] = None,
) -> None:
    """The JSON schema of experiment files, for editors."""
    from tokenprune.config import json_schema

    text = json_schema()
    if output is None:
        print(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {output} ({error.strerror})", "choose another file") from None
    console.print(f"written: {output}", highlight=False)


@app.command()
def profile(
    config: Annotated[Path, typer.Argument(help="An experiment as YAML: its model, task and calibration count.")],
    output: Annotated[Path, typer.Option(help="Where to write the profile.")] = Path("profile.json"),
) -> None:
    """Measure a model's entropy curve and look for the layer where it collapses."""
    from tokenprune.experiment import ExperimentConfig
    from tokenprune.experiment.runner import profile_model
    from tokenprune.selectors.entropy_profile import detect_collapse

    measured = profile_model(ExperimentConfig.from_yaml(config))
    measured.save(output)
    mean = measured.mean
    low, high = min(mean), max(mean)
    for layer, value in enumerate(mean):
        bar = "█" * (1 + round(40 * (value - low) / (high - low or 1)))
        console.print(f"layer {layer:>3}  {value:8.4f}  {bar}", highlight=False)
    console.print(detect_collapse(measured).sentence, highlight=False)
    console.print(f"written: {output} ({len(measured.curves)} samples)", highlight=False)


@app.command()
def flops(
    model: Annotated[str, typer.Option(help="A preset, or a folder with a config.json.")] = "llava-1.5-7b",
    method: Annotated[str, typer.Option(help="A named method.")] = "entropyprune",
    tokens: Annotated[int | None, typer.Option(help="Budget: visual tokens averaged over all layers.")] = None,
    keep: Annotated[int | None, typer.Option(help="Budget: visual tokens kept after the last stage.")] = None,
    ratio: Annotated[float | None, typer.Option(help="Budget: share of the visual tokens kept.")] = None,
    reduction: Annotated[float | None, typer.Option(help="Budget: wanted reduction in percent.")] = None,
    visual_tokens: Annotated[int | None, typer.Option(help="Visual tokens; a preset has a default.")] = None,
    text_tokens: Annotated[int, typer.Option(help="Text tokens of the prompt.")] = 60,
    counted: Annotated[bool, typer.Option("--counted", help="Also count on the real architecture.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """FLOPs of a model's prefill, unpruned and pruned, part by part; nothing is run and no weights are needed."""
    import json

    from tokenprune.measure.estimate import estimate
    from tokenprune.named import load_method

    asked: list[tuple[str, dict[str, Any]]] = [
        *([("layer_average", {"tokens": tokens})] if tokens is not None else []),
        *([("keep_count", {"tokens": keep})] if keep is not None else []),
        *([("keep_ratio", {"ratio": ratio})] if ratio is not None else []),
        *([("flops_reduction", {"percent": reduction})] if reduction is not None else []),
    ]
    if len(asked) > 1:
        raise ConfigError("several budgets", "give one of --tokens, --keep, --ratio, --reduction")
    budget, fields = asked[0] if asked else (None, {})
    found = estimate(model, load_method(method, budget, **fields), text_tokens, visual_tokens, counted)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for name in ("unpruned", "pruned", "reduction"):
        table.add_column(name, justify="right")
    rows = {**found["parts"], "total": found["total"], "decode step": found["decode_step"]}
    head = rows.pop("head")
    rows["output head (not in the total)"] = head
    for name, row in found.get("counted", {}).items():
        rows[f"counted: {name.replace('_', ' ')}"] = row
    for name, row in rows.items():
        cut = (
            [f"{row['flops_pruned'] / 1e12:.5f}", f"{row['reduction_percent']:.2f} %"] if "flops_pruned" in row else []
        )
        style = "bold" if name == "total" else None
        table.add_row(name, f"{row['flops_unpruned'] / 1e12:.5f}", *cut, style=style)
    cache = found["kv_cache_bytes"]
    saved = f"{100 * (1 - cache['pruned'] / cache['unpruned']):.2f} %"
    sizes = [f"{cache[name] / 2**20:.1f} MiB" for name in ("unpruned", "pruned")]
    table.add_row("KV cache (16 bit)", *sizes, saved)
    kept = " -> ".join(map(str, [found["visual_tokens"], *found["kept"]]))
    console.print(
        f"{found['model']}, {found['method']}: visual tokens {kept} before layer"
        f" {', '.join(map(str, found['layers']))}, {found['text_tokens']} text tokens; TFLOPs of one prompt",
        highlight=False,
        soft_wrap=True,
    )
    Console(width=max(console.width, 90)).print(table)


@app.command()
def bench(
    model: Annotated[str, typer.Option(help="A preset, or a checkpoint's folder or hub name.")] = "llava-0.5b",
    method: Annotated[list[str] | None, typer.Option(help="A named method, several times for several; or all.")] = None,
    tokens: Annotated[list[int] | None, typer.Option(help="Budget: visual tokens averaged over all layers.")] = None,
    average: Annotated[list[float] | None, typer.Option(help="The same, as a share of the visual tokens.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch size.")] = None,
    text_tokens: Annotated[int, typer.Option(help="Text tokens per prompt.")] = 60,
    ragged: Annotated[
        bool, typer.Option("--ragged", help="Prompts of different lengths, with one or two images.")
    ] = False,
    decode: Annotated[int, typer.Option(help="Decode steps after each prefill.")] = 16,
    rounds: Annotated[int, typer.Option(help="Rounds that count.")] = 7,
    warmup: Annotated[int, typer.Option(help="Rounds that do not.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (bfloat16), float32, bfloat16, float16.")] = "auto",
    attention: Annotated[str, typer.Option(help="sdpa, eager, flash_attention_2.")] = "sdpa",
    image_size: Annotated[int, typer.Option(help="Pixels per side of a checkpoint's images.")] = 448,
    output: Annotated[Path | None, typer.Option(help="Write all figures as JSON.")] = None,
) -> None:
    """Time methods against the untouched model: prefill, decode, memory; paired rounds, medians with quartiles."""
    from tokenprune.measure.bench import BenchConfig, run_bench
    from tokenprune.measure.bench_table import save

    chosen = {"methods": method, "tokens": tokens, "averages": average, "batches": batch}
    config = BenchConfig.from_dict(
        {
            "model": model,
            **{name: values for name, values in chosen.items() if values},
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
    columns = (TextColumn("{task.description:<20.20}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=None)
        result = run_bench(
            config, lambda name, done, total: bar.update(task, description=name, completed=done, total=total)
        )
    show_bench(result)
    if output is not None:
        save(result, output)
        console.print(f"written: {output}", highlight=False)


def show_bench(result: dict[str, Any]) -> None:
    """The tables on the screen, one per batch size."""
    from tokenprune.measure.bench_table import COLUMNS, cells, sentences

    for found in result["batches"]:
        table = Table(box=None, header_style="bold", pad_edge=False, title=f"batch {found['batch']}")
        for name in COLUMNS:
            table.add_column(name, justify="left" if name == COLUMNS[0] else "right", no_wrap=True)
        for row in found["rows"]:
            table.add_row(*cells(row))
        Console(width=max(console.width, 200)).print(table)
    for sentence in sentences(result):
        console.print(sentence, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
