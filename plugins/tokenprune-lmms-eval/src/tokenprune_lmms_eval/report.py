"""What a run did: the method, its layers and why these, and per task what was kept and what it cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmms_eval.api.instance import TokenCounts

#: Numbers of a sample's prefill that are averaged over a task.
AVERAGED = (
    "visual_before",
    "visual_after",
    "layer_average",
    "flops",
    "flops_unpruned",
    "kv_bytes",
    "kv_bytes_unpruned",
)


class PrunedCounts(TokenCounts):  # type: ignore[misc]
    """lmms-eval's counts of a request, with what the pruning did: they stand in the file of samples.

    Args:
        input_tokens: Tokens of the prompt before pruning.
        output_tokens: Tokens of the answer.
        cost: The numbers of its prefill.
    """

    def __init__(self, input_tokens: int, output_tokens: int, cost: Mapping[str, Any]) -> None:
        super().__init__(input_tokens=input_tokens, output_tokens=output_tokens)
        self.cost = dict(cost)

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return {**super().to_dict(), **self.cost}


@dataclass
class TaskRecord:
    """What was done for one task on one process.

    Attributes:
        requests: Requests that were answered; a document has several in multiple choice.
        without_visual: Those whose prompt had no visual tokens.
        cut: Answers that a stop text ended.
        tokens: Tokens that were generated.
        sums: The sum of every number in :data:`AVERAGED`; None where a request has none.
        generation: The ways in which answers were written.
        failed: Documents without an answer, and why.
    """

    requests: int = 0
    without_visual: int = 0
    cut: int = 0
    tokens: int = 0
    sums: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(AVERAGED, 0.0))
    generation: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)

    def add(self, cost: Mapping[str, Any], tokens: int, cut: bool = False) -> None:
        """Count a request."""
        self.requests += 1
        self.without_visual += cost["visual_before"] == 0
        self.cut += cut
        self.tokens += tokens
        for name in AVERAGED:
            total, value = self.sums[name], cost[name]
            self.sums[name] = None if total is None or value is None else total + value

    def merge(self, other: TaskRecord) -> None:
        """Add what another process did."""
        self.requests += other.requests
        self.without_visual += other.without_visual
        self.cut += other.cut
        self.tokens += other.tokens
        for name, value in other.sums.items():
            total = self.sums[name]
            self.sums[name] = None if total is None or value is None else total + value
        self.generation += [item for item in other.generation if item not in self.generation]
        self.failed += other.failed

    @property
    def shown(self) -> dict[str, Any]:
        """The numbers, JSON-ready; averages over the requests."""
        means = {
            name: None if total is None or not self.requests else total / self.requests
            for name, total in self.sums.items()
        }
        return {
            "requests": self.requests,
            "without_visual_tokens": self.without_visual,
            "cut_at_stop_text": self.cut,
            "generated_tokens": self.tokens,
            "average": means,
            "generation": self.generation,
            "failed": self.failed,
        }


Records = dict[str, TaskRecord]


def merged(records: Sequence[Records]) -> Records:
    """What all processes did."""
    found: Records = {}
    for part in records:
        for task, record in part.items():
            found.setdefault(task, TaskRecord()).merge(record)
    return found


def averages(records: Records) -> dict[str, float]:
    """The averages over all requests of all tasks, of those numbers that are known for all."""
    whole = TaskRecord()
    for record in records.values():
        whole.merge(record)
    if not whole.requests:
        return {}
    return {name: total / whole.requests for name, total in whole.sums.items() if total is not None}


def write(report: Mapping[str, Any], path: Path) -> None:
    """Write a report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
