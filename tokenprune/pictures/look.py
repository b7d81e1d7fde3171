"""What can be drawn of one sample's prefill: pictures, where the tokens are on them, and what each stage did."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenprune.adapters.views import View

ARTICLES = frozenset({"a", "an", "the"})


@dataclass(frozen=True)
class StageLook:
    """What one stage did to the visual tokens of the sample. All arrays are over all tokens of the unpruned prompt.

    Attributes:
        layer: Tokens were dropped before this layer.
        kept: Which tokens are left after the stage, bool ``[tokens]``.
        scores: What the method preferred, the higher the more wanted, float32 ``[tokens]``; NaN for tokens that an
            earlier stage dropped. None for a method that scores no single tokens.
        merged: The token that each dropped token was merged into, int64 ``[tokens]``; -1 for none. None for a method
            that merges nothing.
        reason: Why nothing was dropped; None if tokens were dropped.
    """

    layer: int
    kept: NDArray[np.bool_]
    scores: NDArray[np.float32] | None = None
    merged: NDArray[np.int64] | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Look:
    """One sample under one method.

    Attributes:
        method: The method's name.
        views: The token grids on the pictures.
        cells: (view, row, column) of each visual token in the order of the prompt, int64 ``[tokens, 3]``; -1 for
            tokens that are on no picture (separators of rows, class tokens).
        stages: The stages; none for the unpruned model.
        pictures: The pictures, uint8 ``[height, width, 3]`` each; empty where they are unknown: grids are drawn
            on grey.
        budget: The budget in a few words, or empty.
        question: The question, or empty.
        answer: The answer under this method, or None.
        expected: The expected answer, or None.
        score: How good the answer is, from 0 (wrong) to 1 (right), as its task scores it; None if no task did.
    """

    method: str
    views: tuple[View, ...]
    cells: NDArray[np.int64]
    stages: tuple[StageLook, ...]
    pictures: tuple[NDArray[np.uint8], ...] = field(default=(), repr=False)
    budget: str = ""
    question: str = ""
    answer: str | None = None
    expected: str | None = None
    score: float | None = None

    @property
    def right(self) -> bool | None:
        """Whether the answer is right; None if that is unknown.

        A task's score of at least one half is right. Without a score, an answer is right that is the expected one, or
        begins with its words; case, punctuation and an article before it do not count.
        """
        if self.score is not None:
            return self.score >= 0.5
        if self.answer is None or not self.expected:
            return None
        said, wanted = (words(text) for text in (self.answer, self.expected))
        said, wanted = (found[1:] if len(found) > 1 and found[0] in ARTICLES else found for found in (said, wanted))
        return said[: len(wanted)] == wanted if wanted else self.answer.strip() == self.expected.strip()

    @property
    def tokens(self) -> int:
        """Visual tokens before the first stage."""
        return len(self.cells)

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Which tokens are left after the last stage, bool ``[tokens]``."""
        return self.stages[-1].kept if self.stages else np.ones(self.tokens, dtype=bool)

    def grid(self, view: int, values: NDArray[Any], empty: Any) -> NDArray[Any]:
        """Values of tokens on the grid of a view.

        Args:
            view: Number of the view.
            values: One value per token, ``[tokens]``.
            empty: The value where there is no token.

        Returns:
            ``[rows, columns]``.
        """
        out = np.full((self.views[view].rows, self.views[view].columns), empty, dtype=values.dtype)
        here = self.cells[:, 0] == view
        out[self.cells[here, 1], self.cells[here, 2]] = values[here]
        return out


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.casefold())
