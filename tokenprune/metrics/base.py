"""The contract of a metric."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from tokenprune.core.component import Component


class Metric(Component, ABC):
    """Compares a generated text with the expected answers.

    Attributes:
        min_references: Expected answers that a question needs at least. 0: the task needs no answers at all, and those
            of the unpruned model are the expected ones.
    """

    min_references: ClassVar[int] = 1

    @abstractmethod
    def score(self, text: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
        """Score a text from 0 (wrong) to 1 (right).

        Args:
            text: The generated text.
            answers: The expected answers, at least one.
            choices: The options of a multiple-choice question, in their order: the first one has the letter A. One
                that is missing is an empty text. Empty for an open question.
        """
