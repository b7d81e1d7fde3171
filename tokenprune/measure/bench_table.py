"""The result of a bench as text and as files."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenprune.core.text import well_formed
from tokenprune.errors import OutputError
from tokenprune.output.lines import json_ready
from tokenprune.tables.column import Column, fill, number, text
from tokenprune.tables.markdown import lines
from tokenprune.tables.table import Cell, Table

Row = Mapping[str, Any]


def _name(row: Row) -> str:
    budget = f" {row['tokens']}" if "tokens" in row else f" {row['ratio']:.3g}" if "ratio" in row else ""
    return f"{row['name']}{budget}{', compiled' if row.get('compiled') else ''}"


def _kept(row: Row) -> str:
    kept = sorted(set(row.get("kept", ())))
    if "problem" in row:
        return "-"
    return "all" if not kept else str(kept[0]) if len(kept) == 1 else f"{kept[0]}-{kept[-1]}"


def _number(title: str, name: str, form: str, rank: int, divided: float = 1, spread: bool = False) -> Column[Row]:
    """A column of a measured number; of several rounds the median, and the quartiles if asked for."""

    def median(row: Row) -> float | None:
        value = row.get(name)
        value = value["median"] if isinstance(value, Mapping) else value
        return None if value is None else value / divided

    column = number(title, median, form, unknown="-").ranked(rank)
    if not spread:
        return column

    def cell(row: Row) -> Cell:
        found, value = column.cell(row), row.get(name)
        return replace(found, text=f"{found.text} ({value['low']:.3f}-{value['high']:.3f})") if value else found

    return replace(column, cell=cell)


def columns(rounds: int) -> tuple[Column[Row], ...]:
    """The columns of a table.

    Args:
        rounds: Timed rounds; one round has no spread.
    """
    spread = rounds > 1
    return (
        text("method, layer average", _name),
        Column("kept", lambda row: Cell(_kept(row)), "number", rank=4),
        _number("prefill ms", "prefill_ms", "{:.1f}", 0),
        _number("times faster", "speedup", "{:.3f}", 0, spread=spread),
        _number("FLOPs bound", "bound", "{:.3f}", 3),
        _number("of bound", "of_bound", "{:.0%}", 6),
        _number("select ms", "select_ms", "{:.2f}", 5),
        _number("of prefill", "select_share", "{:.1%}", 10),
        _number("step ms", "step_ms", "{:.1f}", 1),
        _number("step ratio", "step_ratio", "{:.3f}", 9, spread=spread),
        _number("bytes bound", "step_bound", "{:.3f}", 14),
        _number("of it", "step_of_bound", "{:.0%}", 15),
        _number("step CPU ms", "step_cpu_ms", "{:.1f}", 13),
        _number("tokens/s", "decode_tokens_per_s", "{:.1f}", 7),
        _number("requests/s", "requests_per_s", "{:.2f}", 11),
        _number("ratio", "throughput_ratio", "{:.3f}", 12, spread=spread),
        _number("KV MiB", "kv_bytes", "{:.1f}", 2, 2**20),
        _number("peak MiB", "peak_bytes", "{:.0f}", 8, 2**20),
    )


def tables(result: Mapping[str, Any]) -> list[Table]:
    """A table per batch size."""
    shown = columns(result["config"]["rounds"])
    return [fill(f"Batch {batch['batch']}:", shown, batch["rows"]) for batch in result["batches"]]


def sentences(result: Mapping[str, Any]) -> list[str]:
    """The notes below the tables: methods that could not run, the model, the settings and the machine."""
    model, config, machine = result["model"], result["config"], result["environment"]
    rows = [row for table in result["batches"] for row in table["rows"]]
    problems = {row["name"]: row["problem"] for row in rows if "problem" in row}
    return [
        *(f"{name} did not run: {problem}" for name, problem in problems.items()),
        f"{model['name']} ({model['parameters'] / 1e9:.2f} B parameters, {model['dtype']}, {config['attention']}),"
        f" {config['text_tokens']} text tokens{', ragged' if config['ragged'] else ''},"
        f" {config['decode']} decode steps{' on a static cache' if config.get('cache') == 'static' else ''},"
        + (
            " 1 round"
            if config["rounds"] == 1
            else f" {config['rounds']} rounds; median (quartiles), ratios taken within rounds"
        ),
        f"{machine['device']} ({machine['device_type']}, {machine['threads']} threads), torch {machine['torch']},"
        f" transformers {machine['transformers']}, tokenprune {machine['tokenprune']}",
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """Write all tables of a result and the notes below them."""
    shown = ["\n".join([f"{table.title}\n", *lines(table)]) for table in tables(result)]
    return "\n\n".join([*shown, "  \n".join(sentences(result))]) + "\n"


def save(result: Mapping[str, Any], path: Path) -> None:
    """Write a result as JSON, and its tables as Markdown next to it.

    Raises:
        OutputError: A file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(json_ready(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(well_formed(markdown(result)), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror})", "choose another file") from None
