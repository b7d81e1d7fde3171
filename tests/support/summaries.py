"""Rows of a table without an experiment."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenprune.experiment.summary import SeriesSummary
from tokenprune.stats.estimate import Estimate

BOUNDS = ("mean", "low", "high")
INTERVALS = ("accuracy", "gain", "agreement", "divergence", "hard")


def around(mean: float, half: float) -> Estimate:
    """A mean with an even interval."""
    return Estimate(mean, mean - half, mean + half)


def summary(method: str, budget: str = "keep_count 16", accuracy: float = 0.5, **changes: Any) -> SeriesSummary:
    """One row; the unpruned model has no budget."""
    fields: dict[str, Any] = {
        "accuracy": around(accuracy, 0.02),
        "kept": accuracy / 0.9,
        "gain": around(accuracy - 0.9, 0.01),
        "agreement": around(accuracy, 0.03),
        "divergence": None,
        "visual": 16.0,
        "average": 24.0,
        "flops_reduction": 0.5,
        "kv_bytes": 1024.0,
        "time_ratio": 0.5,
        "time_spread": (0.4, 0.6),
        "seeds": 1,
    }
    return SeriesSummary(method=method, budget=budget, **fields | changes)


def stored(path: Path) -> list[SeriesSummary]:
    """The rows of a committed ``summary.json``, of today's form or with the ``half`` of even intervals."""

    def interval(value: dict[str, float] | None) -> Estimate | None:
        if value is None:
            return None
        return around(value["mean"], value["half"]) if "low" not in value else Estimate(*map(value.get, BOUNDS))

    def known(value: float | None) -> float:
        return math.nan if value is None else value

    rows = []
    for row in json.loads(path.read_text()):
        intervals = {name: interval(row.pop(name, None)) for name in INTERVALS}
        spread = tuple(map(known, row.pop("time_spread")))
        texts = {name: row.pop(name) for name in ("method", "budget")}
        numbers = {name: known(value) for name, value in row.items()}
        rows.append(SeriesSummary(**texts, **intervals, **numbers, time_spread=spread))
    return rows


def unpruned() -> SeriesSummary:
    """The row of the unpruned model."""
    return summary("unpruned", "", 0.9, visual=576.0, average=576.0)


def zoo(methods: Iterable[str], budgets: Iterable[int]) -> list[SeriesSummary]:
    """Methods at budgets: all keep as many tokens, at one of three costs; the first is the best."""
    rows = [unpruned()]
    for place, method in enumerate(methods):
        for tokens in budgets:
            accuracy = 0.9 - (0.1 + 0.01 * place) * math.exp(-tokens / 100)
            average = tokens + (place % 3) / 32 * (576 - tokens)
            rows.append(summary(method, f"keep_count {tokens}", accuracy, visual=float(tokens), average=average))
    return rows
