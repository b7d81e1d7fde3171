"""An experiment's rows, put together: one line per method and budget."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenprune.experiment.runner import ExperimentResult, median
from tokenprune.experiment.stats import Estimate, clustered

Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One row of the table: a method with a budget, seeds averaged."""

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


def summarise(result: ExperimentResult) -> list[Line]:
    """The table: the unpruned model first, then budget by budget, the largest first, the best method on top."""
    by_cell: dict[tuple[str, str | None], list[Row]] = defaultdict(list)
    for row in result.rows:
        by_cell[row["method"], row["budget"]].append(row)
    unpruned = by_cell.get(("unpruned", None), [])
    base, reference = right(unpruned), accuracy(unpruned)
    lines = [_line(result, method, budget, rows, base, reference) for (method, budget), rows in by_cell.items()]
    room: dict[str, float] = defaultdict(float)
    for line in lines:
        room[line.budget] = max(room[line.budget], line.visual)
    return sorted(lines, key=lambda line: (-room[line.budget], line.budget, -line.accuracy.mean, line.method))


def _line(
    result: ExperimentResult,
    method: str,
    budget: str | None,
    rows: list[Row],
    base: Mapping[str, float],
    reference: Estimate,
) -> Line:
    groups = {row["sample"]: row["group"] for row in rows}
    shares = right(rows)
    estimate = clustered(list(shares.values()), [groups[sample] for sample in shares])
    ratios = [ratio for key in {row["series"] for row in rows} for ratio in result.timing.get(key, ())]

    def mean(name: str) -> float:
        return sum(float(row[name]) for row in rows) / len(rows)

    return Line(
        method=method,
        budget=budget or "",
        accuracy=estimate,
        kept=estimate.mean / reference.mean if reference.mean else float("nan"),
        gain=difference(shares, base, groups),
        visual=mean("visual_after"),
        average=mean("layer_average"),
        flops_reduction=1 - mean("flops") / mean("flops_unpruned"),
        kv_bytes=mean("kv_bytes"),
        time_ratio=1.0 if method == "unpruned" else median(ratios),
        time_spread=(min(ratios), max(ratios)) if ratios else (float("nan"), float("nan")),
        seeds=len({row["seed"] for row in rows}),
    )


def right(rows: Iterable[Row]) -> dict[str, float]:
    """Question -> share of a method's seeds that answer it right."""
    answers: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        answers[row["sample"]].append(float(row["correct"]))
    return {sample: sum(values) / len(values) for sample, values in answers.items()}


def difference(mine: Mapping[str, float], other: Mapping[str, float], groups: Mapping[str, str]) -> Estimate:
    """How much more is right on the questions that both have, in pairs, clustered by image."""
    both = [sample for sample in mine if sample in other]
    return clustered([mine[sample] - other[sample] for sample in both], [groups[sample] for sample in both])


def accuracy(rows: Sequence[Row]) -> Estimate:
    """Accuracy with an interval clustered by image."""
    return clustered([float(row["correct"]) for row in rows], [row["group"] for row in rows])


def is_random(method: str) -> bool:
    """Whether a method's name says that it chooses at random: ``random`` or ``random-...``."""
    return method == "random" or method.startswith("random-")


def by_budget(lines: Sequence[Line]) -> dict[str, dict[str, Line]]:
    """Budget -> method -> line, in the order of the table, the unpruned model left out."""
    found: dict[str, dict[str, Line]] = defaultdict(dict)
    for line in lines:
        if line.budget:
            found[line.budget][line.method] = line
    return found
