"""The similarity of DocVQA."""

from collections.abc import Sequence

from pydantic import Field

from tokenprune.core.optional import optional
from tokenprune.metrics.base import Metric


class Anls(Metric):
    """Average normalised Levenshtein similarity: ``1 - d`` to the nearest answer if ``d`` is below 0.5, else 0.

    Source: "Scene Text Visual Question Answering", arXiv:1905.13648; the metric of DocVQA, arXiv:2007.00398. ``d`` is
    the edit distance divided by the length of the longer text. Case does not count, and runs of spaces are one space.
    The package rapidfuzz computes the distance.

    Attributes:
        threshold: The distance from which on a text is wrong.
    """

    threshold: float = Field(default=0.5, gt=0, le=1)

    def score(self, text: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
        """The similarity to the nearest answer."""
        levenshtein = optional("rapidfuzz.distance.Levenshtein", "the metric anls")
        said = plain(text)
        nearest = min(float(levenshtein.normalized_distance(said, plain(answer))) for answer in answers)
        return 1 - nearest if nearest < self.threshold else 0.0


def plain(text: str) -> str:
    """The text in lower case, with single spaces."""
    return " ".join(text.lower().split())
