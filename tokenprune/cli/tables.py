"""What the commands print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tokenprune.experiment import ExperimentResult, summarise
from tokenprune.experiment.dry_run import Plan
from tokenprune.experiment.gates import gates
from tokenprune.experiment.numbers import notes
from tokenprune.experiment.profiling import ProfiledModel
from tokenprune.experiment.rows import columns, format_row
from tokenprune.measure import bench_table
from tokenprune.selectors.verdict import Candidate, Verdict
from tokenprune.tuning import TuneResult
from tokenprune.tuning import table as tune_table
from tokenprune.tuning.words import copies_sentence

console = Console()


def print_result(result: ExperimentResult) -> None:
    """Print the main table of an experiment, and what to know about it."""
    summaries = summarise(result)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, name in enumerate(columns(result)):
        table.add_column(name, justify="left" if index < 2 else "right", no_wrap=True)
    for item in summaries:
        table.add_row(*map(escape, format_row(item)))
    Console(width=max(console.width, 190)).print(table)
    for sentence in [*notes(result), *gates(result, summaries)]:
        console.print(escape(sentence.replace("**", "")), highlight=False)


def print_written(paths: Sequence[Path]) -> None:
    """Print which files were written, those of one picture in one line."""
    pictures = {path.with_suffix("") for path in paths if path.suffix == ".png"}
    for path in paths:
        if path.suffix in (".svg", ".pdf") and path.with_suffix("") in pictures:
            continue
        others = ", and as .svg and .pdf" if path.suffix == ".png" else ""
        console.print(f"written: {path}{others}", highlight=False, markup=False, soft_wrap=True)


def print_tune(result: TuneResult) -> None:
    """Print the ranked candidates of a tune, those that cannot run, and the result in words."""
    for ranking in result.rankings:
        table = Table(box=None, header_style="bold", pad_edge=False, title=ranking.budget, title_justify="left")
        for index, name in enumerate(tune_table.COLUMNS):
            table.add_column(name, justify="left" if index < 2 else "right", no_wrap=True)
        for row in ranking.ranked:
            cells = map(escape, tune_table.cells(row, result.facts.goal))
            table.add_row(*cells, style="bold" if row is ranking.best else None)
        Console(width=max(console.width, 200)).print(table)
        for name, reason in ranking.refused.items():
            console.print(escape(f"cannot run: {name}: {reason}"), highlight=False, soft_wrap=True)
    for name, reason in result.skipped.items():
        console.print(escape(f"left out: sample {name}: {reason}"), highlight=False, soft_wrap=True)
    for line in copies_sentence(result.rankings[0].samples, result.facts.copies):
        console.print(escape(line), highlight=False, soft_wrap=True)
    console.print(escape(result.sentence), highlight=False, soft_wrap=True)
    if result.facts.seconds:  # unknown of a tune that an older version ran
        console.print(f"measured in {duration(result.facts.seconds)}", highlight=False)


def print_plan(plan: Plan) -> None:
    """Print what an experiment would run."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("series", "before layer"):
        table.add_column(name, no_wrap=True)
    for name in ("batches", "forwards", "about"):
        table.add_column(name, justify="right", no_wrap=True)
    for item in plan.series:
        layers = ", ".join(map(str, item.layers))
        table.add_row(escape(item.key), layers, str(item.batches), f"<= {item.forwards}", duration(item.seconds))
    Console(width=max(console.width, 120)).print(table)
    for title, settings in plan.settings.items():
        console.print(escape(f"The method `{title}` has the {settings}."), highlight=False, soft_wrap=True)
    for key, (samples, seconds) in plan.tunes.items():
        console.print(
            escape(f"{key}: a tune on {samples} samples chooses it first, with at most {duration(seconds)} for each")
            + " candidate; that is not in the table, and its answers count as the unpruned model's.",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"{plan.questions} questions; the times are those of the first batch ({plan.batch_size} questions), times the"
        f" batches. Prefill timings: about {duration(plan.timing_seconds)}; the report's examples: about"
        f" {duration(plan.example_seconds)}. In all about {duration(plan.seconds)}."
        " Nothing was written.",
        highlight=False,
        soft_wrap=True,
    )


def print_profile(measured: ProfiledModel) -> None:
    """Print an entropy curve, what both rules find in it, and the candidates of every verdict."""
    mean = measured.profile.mean
    low, high = min(mean), max(mean)
    for layer, value in enumerate(mean):
        bar = "█" * (1 + round(40 * (value - low) / (high - low or 1)))
        console.print(f"layer {layer:>3}  {value:8.4f}  {bar}", highlight=False)
    for sentence in measured.sentences:
        console.print(escape(sentence), highlight=False, soft_wrap=True)
    for key, reason in measured.reasons.items():
        console.print(escape(f"\n{reason}"), highlight=False, soft_wrap=True)
        if key in measured.verdicts:
            _print_candidates(measured.verdicts[key])


def _print_candidates(verdict: Verdict) -> None:
    """Agreement with the unpruned model: a row per layer, a column per combination of the verified fields."""
    columns = list(dict.fromkeys(_columns(item) for item in verdict.candidates))
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("before layer", justify="right")
    for name in columns:
        table.add_column(escape(name), justify="right", no_wrap=True)
    most = max(item.samples for item in verdict.candidates)
    for layer in sorted({item.layer for item in verdict.candidates}):
        cells = {_columns(item): _cell(item, verdict, most) for item in verdict.candidates if item.layer == layer}
        table.add_row(str(layer), *(cells.get(name, "") for name in columns))
    Console(width=max(console.width, 120)).print(table)
    console.print(f"agreement in percent, * chosen; (n) left after n of {most} samples; - cannot run", highlight=False)


def _columns(candidate: Candidate) -> str:
    """The verified fields of a candidate in words."""
    fields = (f"{path.rpartition('.')[2]} {value}" for path, value in candidate.fields.items())
    return ", ".join(fields) or "agreement"


def _cell(candidate: Candidate, verdict: Verdict, most: int) -> str:
    """The agreement of a candidate, marked if it was chosen or left early."""
    if candidate.agreement is None:
        return "-"
    chosen = (candidate.layer, candidate.fields) == (verdict.layer, verdict.fields)
    early = f" ({candidate.samples})" if candidate.samples < most else ""
    return f"{'* ' if chosen else ''}{100 * candidate.agreement:.1f}{early}"


def duration(seconds: float) -> str:
    """A time in words, e.g. ``3 min 20 s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def print_estimate(result: dict[str, Any]) -> None:
    """Print the table of :func:`tokenprune.measure.estimate.estimate`."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("")
    for name in ("unpruned", "pruned", "reduction"):
        table.add_column(name, justify="right")
    rows = {**result["parts"], "total": result["total"], "decode step": result["decode_step"]}
    rows["output head (not in the total)"] = rows.pop("head")
    for name, row in result.get("counted", {}).items():
        rows[f"counted: {name.replace('_', ' ')}"] = row
    for name, row in rows.items():
        pruned = (
            [f"{row['flops_pruned'] / 1e12:.5f}", f"{row['reduction_percent']:.2f} %"] if "flops_pruned" in row else []
        )
        style = "bold" if name == "total" else None
        table.add_row(name, f"{row['flops_unpruned'] / 1e12:.5f}", *pruned, style=style)
    cache = result["kv_cache_bytes"]
    saved = f"{100 * (1 - cache['pruned'] / cache['unpruned']):.2f} %"
    sizes = [f"{cache[name] / 2**20:.1f} MiB" for name in ("unpruned", "pruned")]
    table.add_row("KV cache (16 bit)", *sizes, saved)
    kept = " -> ".join(map(str, [result["visual_tokens"], *result["kept"]]))
    console.print(
        f"{result['model']}, {result['method']}: visual tokens {kept} before layer"
        f" {', '.join(map(str, result['layers']))}, {result['text_tokens']} text tokens; TFLOPs of one prompt",
        highlight=False,
        soft_wrap=True,
    )
    Console(width=max(console.width, 90)).print(table)
    if "settings" in result:
        console.print(escape(f"{result['method']} has the {result['settings']}."), highlight=False, soft_wrap=True)


def print_bench(result: dict[str, Any]) -> None:
    """Print the tables of a bench, one per batch size."""
    columns = bench_table.COLUMNS
    for batch_result in result["batches"]:
        table = Table(box=None, header_style="bold", pad_edge=False, title=f"batch {batch_result['batch']}")
        for name in columns:
            table.add_column(name, justify="left" if name == columns[0] else "right", no_wrap=True)
        for row in batch_result["rows"]:
            table.add_row(*bench_table.format_row(row, result["config"]["rounds"]))
        Console(width=max(console.width, 200)).print(table)
    for sentence in bench_table.sentences(result):
        console.print(sentence, highlight=False, soft_wrap=True)
