"""Tables and the picture of an experiment."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tokenprune.experiment.results import Results
from tokenprune.experiment.runner import ExperimentResult
from tokenprune.experiment.summary import Line, Row, accuracy, by_budget, difference, is_random, right, summarise

NEEDED = 2000  # questions before the gates say anything about a model


COLUMNS = (
    "method",
    "budget",
    "accuracy %",
    "% of unpruned",
    "minus unpruned",
    "visual tokens",
    "layer average",
    "FLOPs",
    "KV cache",
    "prefill time",
)


def cells(line: Line) -> list[str]:
    """A line's columns as text."""
    plain = line.method == "unpruned"
    name = line.method + (f" ({line.seeds} seeds)" if line.seeds > 1 else "")
    spread = (
        f" ({line.time_spread[0]:.2f}-{line.time_spread[1]:.2f})" if line.time_spread[0] == line.time_spread[0] else ""
    )
    return [
        name,
        line.budget,
        str(line.accuracy),
        f"{100 * line.kept:.1f}",
        "" if plain else f"{100 * line.gain.mean:+.1f} ± {100 * line.gain.half:.1f}",
        f"{line.visual:.1f}",
        f"{line.average:.1f}",
        "" if plain else "unknown" if math.isnan(line.flops_reduction) else f"-{100 * line.flops_reduction:.1f} %",
        "unknown" if math.isnan(line.kv_bytes) else f"{line.kv_bytes / 2**20:.2f} MiB",
        "1" if plain else (f"x {line.time_ratio:.2f}{spread}" if line.time_ratio == line.time_ratio else ""),
    ]


def markdown(result: ExperimentResult) -> str:
    """The whole report as markdown: gates, table, layers, accuracy per type."""
    return _markdown(result, summarise(result))


def _markdown(result: ExperimentResult, lines: Sequence[Line]) -> str:
    out = ["# Results", "", *gates(result, lines), "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    out += ["| " + " | ".join(cells(line)) + " |" for line in lines]
    count = len({row["sample"] for row in result.rows})
    pictures = len({row["group"] for row in result.rows})
    out += ["", f"{count} questions on {pictures} pictures; intervals are 95 %, clustered by picture."]
    out += _against_random(result, lines)
    reasons = {choice["reason"]: choice["layers"] for choice in result.choices.values()}
    out += ["", "Layers:", *(f"- before layer {', '.join(map(str, layers))}: {why}" for why, layers in reasons.items())]
    out += ["", "Accuracy per question type, %:", "", *_types(result, lines)]
    return "\n".join(out) + "\n"


def _against_random(result: ExperimentResult, lines: Sequence[Line]) -> list[str]:
    """Every method minus the random choice whose mean number of tokens over all layers is the nearest, in pairs."""
    table = by_budget(lines)
    if not any(is_random(method) for cell in table.values() for method in cell):
        return []
    groups = {row["sample"]: row["group"] for row in result.rows}
    rows: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in result.rows:
        rows[row["method"], row["budget"] or ""].append(row)
    out = ["| method | " + " | ".join(table) + " | compared with |", "|---|" + "---|" * (len(table) + 1)]
    for method in sorted({line.method for line in lines if line.budget and not is_random(line.method)}):
        shown, rivals = [], []
        for budget, cell in table.items():
            chance = [line for name, line in cell.items() if is_random(name)]
            if method not in cell or not chance:
                shown.append("")
                continue
            average = cell[method].average
            rival = min(chance, key=lambda line: (abs(line.average - average), line.method)).method
            gain = difference(right(rows[method, budget]), right(rows[rival, budget]), groups)
            text = f"{100 * gain.mean:+.1f} ± {100 * gain.half:.1f}"
            shown.append(f"**{text}**" if gain.mean + gain.half < 0 else text)
            rivals.append(rival)
        out.append(f"| {method} | " + " | ".join(shown) + f" | {', '.join(dict.fromkeys(rivals))} |")
    return [
        "",
        "Points above random pruning on the same questions; **bold where random wins** beyond the interval. Compared is"
        " the random choice whose layer average is the nearest:",
        "",
        *out,
    ]


def _types(result: ExperimentResult, lines: Sequence[Line]) -> list[str]:
    kinds = sorted({row["type"] for row in result.rows})
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in result.rows:
        found[row["method"], row["budget"] or "", row["type"]].append(float(row["correct"]))
    out = ["| method | budget | " + " | ".join(kinds) + " |", "|---|---|" + "---|" * len(kinds)]
    for line in lines:
        values = [found[line.method, line.budget, kind] for kind in kinds]
        shown = " | ".join(f"{100 * sum(value) / len(value):.1f}" if value else "" for value in values)
        out.append(f"| {line.method} | {line.budget} | {shown} |")
    return out


def gates(result: ExperimentResult, lines: Sequence[Line]) -> list[str]:
    """Whether the experiment's own data show that the model can tell methods apart; one sentence per failure.

    The unpruned model must reach 85 %, every question type 20 points more than its most frequent answer; keeping the
    true foreground at about 11 % of the tokens must hold 95 % of the unpruned accuracy and beat random there by three
    half-widths of the interval.

    Args:
        result: The experiment.
        lines: Its summary.
    """
    unpruned = [row for row in result.rows if row["method"] == "unpruned"]
    if not unpruned:
        return ["No unpruned run yet."]
    failures = []
    reached = accuracy(unpruned)
    if reached.mean < 0.85:
        failures.append(f"unpruned accuracy {reached} % is below 85 %")
    for kind in sorted({row["type"] for row in unpruned}):
        rows = [row for row in unpruned if row["type"] == kind]
        majority = Counter(row["answer"] for row in rows).most_common(1)[0][1] / len(rows)
        reached_here = accuracy(rows).mean
        if reached_here < majority + 0.2:
            failures.append(f"type {kind}: {100 * reached_here:.1f} %, most frequent answer {100 * majority:.1f} %")
    failures += _separation(lines)
    enough = len(unpruned) >= NEEDED
    verdict = (
        ["**This model cannot separate methods yet:** " + "; ".join(failures) + "."]
        if failures
        else [
            f"Gates {'passed' if enough else 'met on this sample'}: unpruned {reached} %, every type 20 points above"
            " its most frequent answer, and the foreground at about 11 % holds 95 % of it and beats random by three"
            " half-widths."
        ]
    )
    if not enough:
        verdict.append(f"The gates need {NEEDED} questions; this run has {len(unpruned)}.")
    return verdict


def _separation(lines: Sequence[Line]) -> list[str]:
    whole = next((line for line in lines if line.method == "unpruned"), None)
    oracle = {line.budget: line for line in lines if line.method == "oracle"}
    random = {line.budget: line for line in lines if line.method == "random"}
    both = sorted(set(oracle) & set(random), key=lambda b: abs(oracle[b].visual / whole.visual - 0.11) if whole else 0)
    if whole is None or not both:
        return ["no budget has both oracle and random"]
    best, chance = oracle[both[0]], random[both[0]]
    share = 100 * best.visual / whole.visual
    found = []
    if best.kept < 0.95:
        found.append(
            f"the foreground at {share:.0f} % of the tokens holds {100 * best.kept:.1f} % of the unpruned accuracy"
        )
    half = max(best.accuracy.half, chance.accuracy.half)
    if best.accuracy.mean - chance.accuracy.mean < 3 * half:
        found.append(
            f"the foreground at {share:.0f} % beats random by {100 * (best.accuracy.mean - chance.accuracy.mean):.1f}"
            f" points, less than three half-widths ({300 * half:.1f})"
        )
    return found


def write_report(result: ExperimentResult) -> list[Path]:
    """Write ``report.md``, ``summary.json`` and, where matplotlib is installed, ``accuracy.png``."""
    results, lines = Results(result.folder), summarise(result)
    written = [
        results.write("report.md", _markdown(result, lines)),
        results.write("summary.json", json.dumps([asdict(line) for line in lines], indent=1)),
    ]
    try:
        from tokenprune.experiment.plot import accuracy_plot
    except ImportError:
        return written  # the picture is an extra: pip install 'tokenprune-mllm[plot]'
    path = results.folder / "accuracy.png"
    accuracy_plot(lines, path)
    return [*written, path]
