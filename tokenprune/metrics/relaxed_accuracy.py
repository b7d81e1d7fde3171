"""The relaxed accuracy of ChartQA."""

import math
from collections.abc import Sequence

from pydantic import Field

from tokenprune.metrics.base import Metric


class RelaxedAccuracy(Metric):
    """1 if a number is within 5% of the expected one, or another text equals it apart from case, else 0.

    Source: "ChartQA: A Benchmark for Question Answering about Charts with Visual and Logical Reasoning",
    arXiv:2203.10244, section 5.1. "12%" is the number 0.12, as in the evaluations in use. An expected 0 must be met
    as text: no other number is within 5% of it.

    Attributes:
        tolerance: The largest relative difference of a number.
    """

    tolerance: float = Field(default=0.05, ge=0, lt=1)

    def score(self, text: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
        """1 if the text is near enough to one of the answers."""
        return float(any(self._near(text.strip(), answer.strip()) for answer in answers))

    def _near(self, text: str, answer: str) -> bool:
        said, expected = number(text), number(answer)
        if said is None or not expected:
            return text.lower() == answer.lower()
        return abs(said - expected) / abs(expected) <= self.tolerance


def number(text: str) -> float | None:
    """The finite number that a text states, percent signs applied; None if it states none."""
    try:
        value = float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
