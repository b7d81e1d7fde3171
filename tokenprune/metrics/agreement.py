"""Agreement with the unpruned model."""

from collections.abc import Sequence
from typing import ClassVar

from tokenprune.metrics.base import Metric
from tokenprune.metrics.normalise import normalise


class Agreement(Metric):
    """1 if the text is the unpruned model's answer after the VQA benchmark's normalisation, else 0.

    It needs no labels. It says how much pruning changes a model, not whether the model is right.
    """

    min_references: ClassVar[int] = 0

    def score(self, text: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
        """1 if the text is the unpruned model's answer."""
        return float(normalise(text) in map(normalise, answers))
