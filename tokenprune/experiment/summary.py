"""The summary of an experiment: one row per method and budget, averaged over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenprune.experiment.runner import ExperimentResult, median
from tokenprune.experiment.stats import Estimate, clustered

Row = dict[str, Any]


@dataclass(frozen=True)
class SeriesSummary:
    """One row of the table: a method with a budget, averaged over its seeds.

    Attributes:
        method: The method's name in tables.
        budget: The budget in a few words; empty for the unpruned model.
        accuracy: Accuracy, from 0 to 1.
        kept: Accuracy as a share of the unpruned model's.
        gain: Accuracy minus that of the unpruned model, paired by question.
        visual: Visual tokens per sample after the last stage, mean.
        average: Visual tokens per sample and decoder layer, mean.
        flops_reduction: Saved share of the decoder's prefill FLOPs; NaN where the FLOPs are unknown.
        kv_bytes: Bytes of the KV cache per sample, mean; NaN where unknown.
        time_ratio: Median prefill time divided by that of the unpruned model; NaN without timings.
        time_spread: Smallest and largest of these ratios.
        seeds: Number of seeds.
    """

    method: str
    budget: str
    accuracy: Estimate
    kept: float
    gain: Estimate
    visual: float
    average: float
    flops_reduction: float
    kv_bytes: float
    time_ratio: float
    time_spread: tuple[float, float]
    seeds: int


def summarise(result: ExperimentResult) -> list[SeriesSummary]:
    """The rows of the table: the unpruned model first, then the largest budget; the best method of a budget first."""
    rows_by_series: dict[tuple[str, str | None], list[Row]] = defaultdict(list)
    for row in result.rows:
        rows_by_series[row["method"], row["budget"]].append(row)
    unpruned = rows_by_series.get(("unpruned", None), [])
    base, reference = accuracy_by_question(unpruned), accuracy(unpruned)
    summaries = [
        _summarise_series(result, method, budget, rows, base, reference)
        for (method, budget), rows in rows_by_series.items()
    ]
    most_tokens: dict[str, float] = defaultdict(float)  # of any method, by budget
    for item in summaries:
        most_tokens[item.budget] = max(most_tokens[item.budget], item.visual)
    return sorted(
        summaries, key=lambda item: (-most_tokens[item.budget], item.budget, -item.accuracy.mean, item.method)
    )


def _summarise_series(
    result: ExperimentResult,
    method: str,
    budget: str | None,
    rows: list[Row],
    base: Mapping[str, float],
    reference: Estimate,
) -> SeriesSummary:
    groups = {row["sample"]: row["group"] for row in rows}
    accuracies = accuracy_by_question(rows)
    estimate = clustered(list(accuracies.values()), [groups[sample] for sample in accuracies])
    ratios = [ratio for key in {row["series"] for row in rows} for ratio in result.timing.get(key, ())]

    def mean(name: str) -> float:
        return sum(float(row[name]) for row in rows) / len(rows)

    return SeriesSummary(
        method=method,
        budget=budget or "",
        accuracy=estimate,
        kept=estimate.mean / reference.mean if reference.mean else float("nan"),
        gain=difference(accuracies, base, groups),
        visual=mean("visual_after"),
        average=mean("layer_average"),
        flops_reduction=1 - mean("flops") / mean("flops_unpruned"),
        kv_bytes=mean("kv_bytes"),
        time_ratio=1.0 if method == "unpruned" else median(ratios),
        time_spread=(min(ratios), max(ratios)) if ratios else (float("nan"), float("nan")),
        seeds=len({row["seed"] for row in rows}),
    )


def accuracy_by_question(rows: Iterable[Row]) -> dict[str, float]:
    """Question id -> share of the method's seeds that answer it correctly."""
    answers: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        answers[row["sample"]].append(float(row["score"]))
    return {sample: sum(values) / len(values) for sample, values in answers.items()}


def difference(first: Mapping[str, float], second: Mapping[str, float], groups: Mapping[str, str]) -> Estimate:
    """Accuracy of the first method minus that of the second, on the questions that both answered.

    Args:
        first: Question id -> accuracy.
        second: Question id -> accuracy.
        groups: Question id -> the image that intervals are clustered by.
    """
    both = [sample for sample in first if sample in second]
    return clustered([first[sample] - second[sample] for sample in both], [groups[sample] for sample in both])


def accuracy(rows: Sequence[Row]) -> Estimate:
    """Accuracy with an interval clustered by image."""
    return clustered([float(row["score"]) for row in rows], [row["group"] for row in rows])


def is_random(method: str) -> bool:
    """Whether a method chooses tokens at random. The name decides: ``random`` or ``random-...``."""
    return method == "random" or method.startswith("random-")


def by_budget(summaries: Sequence[SeriesSummary]) -> dict[str, dict[str, SeriesSummary]]:
    """Budget -> method -> summary, in the order of the table, without the unpruned model."""
    table: dict[str, dict[str, SeriesSummary]] = defaultdict(dict)
    for item in summaries:
        if item.budget:
            table[item.budget][item.method] = item
    return table
