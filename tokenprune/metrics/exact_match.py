"""Exact match after normalisation."""

from collections.abc import Sequence

from tokenprune.metrics.base import Metric
from tokenprune.metrics.normalise import normalise


class ExactMatch(Metric):
    """1 if the text is one of the expected answers after the VQA benchmark's normalisation, else 0."""

    def score(self, text: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
        """1 if the text is one of the answers."""
        return float(normalise(text) in map(normalise, answers))
