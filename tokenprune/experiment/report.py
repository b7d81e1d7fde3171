"""The report of an experiment: tables, and a picture where matplotlib is installed."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tokenprune.experiment.results import Results
from tokenprune.experiment.runner import ExperimentResult
from tokenprune.experiment.summary import (
    Row,
    SeriesSummary,
    accuracy,
    accuracy_by_question,
    by_budget,
    difference,
    is_random,
    summarise,
)

#: Questions that an experiment needs before its gates say anything about a model.
GATE_QUESTIONS = 2000

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


def format_row(summary: SeriesSummary) -> list[str]:
    """One row of the table as text, in the order of :data:`COLUMNS`."""
    unpruned = summary.method == "unpruned"
    name = summary.method + (f" ({summary.seeds} seeds)" if summary.seeds > 1 else "")
    saved = "unknown" if math.isnan(summary.flops_reduction) else f"-{100 * summary.flops_reduction:.1f} %"
    low, high = summary.time_spread
    spread = "" if math.isnan(low) else f" ({low:.2f}-{high:.2f})"
    return [
        name,
        summary.budget,
        str(summary.accuracy),
        f"{100 * summary.kept:.1f}",
        "" if unpruned else f"{100 * summary.gain.mean:+.1f} ± {100 * summary.gain.half:.1f}",
        f"{summary.visual:.1f}",
        f"{summary.average:.1f}",
        "" if unpruned else saved,
        "unknown" if math.isnan(summary.kv_bytes) else f"{summary.kv_bytes / 2**20:.2f} MiB",
        "1" if unpruned else "" if math.isnan(summary.time_ratio) else f"x {summary.time_ratio:.2f}{spread}",
    ]


def markdown(result: ExperimentResult) -> str:
    """The report as Markdown: gates, main table, comparison with random, layers, accuracy per question type."""
    return _markdown(result, summarise(result))


def _markdown(result: ExperimentResult, summaries: Sequence[SeriesSummary]) -> str:
    out = [
        "# Results",
        "",
        *gates(result, summaries),
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    out += ["| " + " | ".join(format_row(item)) + " |" for item in summaries]
    questions = len({row["sample"] for row in result.rows})
    pictures = len({row["group"] for row in result.rows})
    out += ["", f"{questions} questions on {pictures} pictures; intervals are 95 %, clustered by picture."]
    out += _against_random(result, summaries)
    reasons = {choice["reason"]: choice["layers"] for choice in result.choices.values()}
    out += ["", "Layers:", *(f"- before layer {', '.join(map(str, layers))}: {why}" for why, layers in reasons.items())]
    out += ["", "Accuracy per question type, %:", "", *_accuracy_per_type(result, summaries)]
    return "\n".join(out) + "\n"


def _against_random(result: ExperimentResult, summaries: Sequence[SeriesSummary]) -> list[str]:
    """Every method minus the random method with the nearest layer average, paired by question."""
    table = by_budget(summaries)
    if not any(is_random(method) for methods in table.values() for method in methods):
        return []
    groups = {row["sample"]: row["group"] for row in result.rows}
    rows: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in result.rows:
        rows[row["method"], row["budget"] or ""].append(row)
    out = ["| method | " + " | ".join(table) + " | compared with |", "|---|" + "---|" * (len(table) + 1)]
    for method in sorted({item.method for item in summaries if item.budget and not is_random(item.method)}):
        gains, rivals = [], []
        for budget, methods in table.items():
            random_methods = [item for name, item in methods.items() if is_random(name)]
            if method not in methods or not random_methods:
                gains.append("")
                continue
            average = methods[method].average
            rival = min(random_methods, key=lambda item: (abs(item.average - average), item.method)).method
            gain = difference(
                accuracy_by_question(rows[method, budget]), accuracy_by_question(rows[rival, budget]), groups
            )
            text = f"{100 * gain.mean:+.1f} ± {100 * gain.half:.1f}"
            gains.append(f"**{text}**" if gain.mean + gain.half < 0 else text)
            rivals.append(rival)
        out.append(f"| {method} | " + " | ".join(gains) + f" | {', '.join(dict.fromkeys(rivals))} |")
    return [
        "",
        "Points above random pruning on the same questions; **bold where random wins** beyond the interval. Compared is"
        " the random choice whose layer average is the nearest:",
        "",
        *out,
    ]


def _accuracy_per_type(result: ExperimentResult, summaries: Sequence[SeriesSummary]) -> list[str]:
    types = sorted({row["type"] for row in result.rows})
    correct: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in result.rows:
        correct[row["method"], row["budget"] or "", row["type"]].append(float(row["score"]))
    out = ["| method | budget | " + " | ".join(types) + " |", "|---|---|" + "---|" * len(types)]
    for item in summaries:
        per_type = [correct[item.method, item.budget, kind] for kind in types]
        columns = " | ".join(f"{100 * sum(values) / len(values):.1f}" if values else "" for values in per_type)
        out.append(f"| {item.method} | {item.budget} | {columns} |")
    return out


def gates(result: ExperimentResult, summaries: Sequence[SeriesSummary]) -> list[str]:
    """Check on the experiment's own data whether the model can tell methods apart.

    The unpruned model must reach 85 %, and on every question type 20 points more than the most frequent answer would.
    With the true foreground alone, at about 11 % of the tokens, the model must reach 95 % of its unpruned accuracy and
    beat random pruning by three half-widths of the interval.

    Args:
        result: The experiment.
        summaries: Its summary, see :func:`~tokenprune.experiment.summary.summarise`.

    Returns:
        Sentences: the verdict with the checks that failed, and a note where the experiment has too few questions.
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
    failures += _oracle_failures(summaries)
    enough = len(unpruned) >= GATE_QUESTIONS
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
        verdict.append(f"The gates need {GATE_QUESTIONS} questions; this run has {len(unpruned)}.")
    return verdict


def _oracle_failures(summaries: Sequence[SeriesSummary]) -> list[str]:
    """What is wrong with the oracle, compared with random pruning, at the budget nearest to 11 % of the tokens."""
    unpruned = next((item for item in summaries if item.method == "unpruned"), None)
    oracles = {item.budget: item for item in summaries if item.method == "oracle"}
    randoms = {item.budget: item for item in summaries if item.method == "random"}
    budgets = set(oracles) & set(randoms)
    if unpruned is None or not budgets:
        return ["no budget has both oracle and random"]
    all_tokens = unpruned.visual
    budget = min(sorted(budgets), key=lambda name: abs(oracles[name].visual / all_tokens - 0.11))
    oracle, random = oracles[budget], randoms[budget]
    share = 100 * oracle.visual / all_tokens
    failures = []
    if oracle.kept < 0.95:
        failures.append(
            f"the foreground at {share:.0f} % of the tokens holds {100 * oracle.kept:.1f} % of the unpruned accuracy"
        )
    half = max(oracle.accuracy.half, random.accuracy.half)
    gain = oracle.accuracy.mean - random.accuracy.mean
    if gain < 3 * half:
        failures.append(
            f"the foreground at {share:.0f} % beats random by {100 * gain:.1f} points, less than three half-widths"
            f" ({300 * half:.1f})"
        )
    return failures


def write_report(result: ExperimentResult) -> list[Path]:
    """Write ``report.md``, ``summary.json`` and, where matplotlib is installed, ``accuracy.png``.

    Returns:
        The paths of the files.
    """
    results, summaries = Results(result.folder), summarise(result)
    written = [
        results.write("report.md", _markdown(result, summaries)),
        results.write("summary.json", json.dumps([asdict(item) for item in summaries], indent=1)),
    ]
    try:
        from tokenprune.experiment.plot import accuracy_plot
    except ImportError:
        return written  # matplotlib is optional: pip install 'tokenprune-mllm[plot]'
    path = results.folder / "accuracy.png"
    accuracy_plot(summaries, path)
    return [*written, path]
