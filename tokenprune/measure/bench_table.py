"""The result of a bench as text and as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenprune.core.text import well_formed
from tokenprune.errors import OutputError
from tokenprune.files.lines import json_ready

COLUMNS = (
    "method",
    "kept",
    "prefill ms",
    "times faster",
    "FLOPs bound",
    "of bound",
    "select ms",
    "of prefill",
    "step ms",
    "step ratio",
    "tokens/s",
    "requests/s",
    "ratio",
    "KV MiB",
    "peak MiB",
)


def format_row(row: Mapping[str, Any], rounds: int = 2) -> list[str]:
    """One row of a table as text, in the order of :data:`COLUMNS`.

    Args:
        row: The row.
        rounds: Timed rounds; one round has no spread.
    """
    budget = f" {row['tokens']}" if "tokens" in row else f" {row['ratio']:.3g}" if "ratio" in row else ""
    if "problem" in row:
        return [row["name"] + budget, *["-"] * (len(COLUMNS) - 1)]
    kept = sorted(set(row["kept"]))

    def spread(value: Mapping[str, float] | None) -> str:
        if value is None or rounds == 1:
            return number(value, ".3f")
        return f"{value['median']:.3f} ({value['low']:.3f}-{value['high']:.3f})"

    def number(value: float | Mapping[str, float] | None, form: str) -> str:
        if isinstance(value, Mapping):
            value = value["median"]
        return "-" if value is None else format(value, form)

    return [
        row["name"] + budget,
        "all" if not kept else str(kept[0]) if len(kept) == 1 else f"{kept[0]}-{kept[-1]}",
        number(row["prefill_ms"], ".1f"),
        spread(row["speedup"]),
        number(row["bound"], ".3f"),
        number(row["of_bound"], ".0%"),
        number(row["select_ms"], ".2f"),
        number(row["select_share"], ".1%"),
        number(row.get("step_ms"), ".1f"),
        spread(row.get("step_ratio")),
        number(row.get("decode_tokens_per_s"), ".1f"),
        number(row["requests_per_s"], ".2f"),
        spread(row["throughput_ratio"]),
        f"{row['kv_bytes'] / 2**20:.1f}",
        f"{row['peak_bytes'] / 2**20:.0f}",
    ]


def sentences(result: Mapping[str, Any]) -> list[str]:
    """The notes below the tables: methods that could not run, the model, the settings and the machine."""
    model, config, machine = result["model"], result["config"], result["environment"]
    rows = [row for table in result["batches"] for row in table["rows"]]
    problems = {row["name"]: row["problem"] for row in rows if "problem" in row}
    return [
        *(f"{name} did not run: {problem}" for name, problem in problems.items()),
        f"{model['name']} ({model['parameters'] / 1e9:.2f} B parameters, {model['dtype']}, {config['attention']}),"
        f" {config['text_tokens']} text tokens{', ragged' if config['ragged'] else ''},"
        f" {config['decode']} decode steps,"
        + (
            " 1 round"
            if config["rounds"] == 1
            else f" {config['rounds']} rounds; median (quartiles), ratios taken within rounds"
        ),
        f"{machine['device']} ({machine['device_type']}, {machine['threads']} threads), torch {machine['torch']},"
        f" transformers {machine['transformers']}, tokenprune {machine['tokenprune']}",
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """All tables of a result and the notes below them."""
    tables = []
    for table in result["batches"]:
        lines = [
            f"Batch {table['batch']}:\n",
            "| " + " | ".join(COLUMNS) + " |",
            "|---|" + "---:|" * (len(COLUMNS) - 1),
        ]
        lines += ["| " + " | ".join(format_row(row, result["config"]["rounds"])) + " |" for row in table["rows"]]
        tables.append("\n".join(lines))
    return "\n\n".join([*tables, "  \n".join(sentences(result))]) + "\n"


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
