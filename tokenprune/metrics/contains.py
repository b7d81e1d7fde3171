"""Expected answers that occur in the text."""

from collections.abc import Sequence

from tokenprune.metrics.base import Metric
from tokenprune.metrics.normalise import normalise


class Contains(Metric):
    """1 if the words of an expected answer occur in the text, one after the other and whole, else 0.

    Both are normalised as the VQA benchmark does. "cat" occurs in "It is a cat." and not in "a category". A long text
    has better chances, and "not a cat" counts, too: use it for models that answer in sentences.
    """

    def score(self, text: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
        """1 if an answer occurs in the text."""
        said = f" {normalise(text)} "
        return float(any(f" {words} " in said for words in map(normalise, answers) if words))
