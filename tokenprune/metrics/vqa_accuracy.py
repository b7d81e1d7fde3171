"""The accuracy of the VQA benchmark over ten answers."""

from collections.abc import Sequence
from typing import ClassVar

from tokenprune.metrics.base import Metric
from tokenprune.metrics.normalise import normalise


class VqaAccuracy(Metric):
    """The mean over all annotators of ``min(1, m / 3)``, where m of the *other* annotators gave the text as answer.

    Source: https://visualqa.org/evaluation.html; "VQA: Visual Question Answering", arXiv:1505.00468. With ten answers
    the text scores 0.3 if one annotator gave it, 0.6 for two, 0.9 for three and 1 from four on.

    Difference: answers are always normalised. The published script leaves them as they are where all annotators gave
    the same string, so that "Yes." is wrong beside ten times "yes".
    """

    min_references: ClassVar[int] = 4  # with fewer, no text can reach 1

    def score(self, text: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
        """The share of annotators who agree, with the benchmark's tolerance."""
        said = normalise(text)
        same = [normalise(answer) == said for answer in answers]
        matches = sum(same)
        # whoever gave the text is left out of his own comparison
        return sum(min(1.0, (matches - own) / 3) for own in same) / len(same)
