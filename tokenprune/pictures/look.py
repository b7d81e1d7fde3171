"""One sample's prefill as it can be drawn: pictures, where the tokens are on them, and what each stage did."""

import itertools
import re
import unicodedata
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenprune.adapters.views import View

ARTICLES = frozenset({"a", "an", "the"})
#: The sign of a number, and its decimal point.
PARTS_OF_NUMBERS = re.compile(r"(?<!\S)-(?=\d)|(?<=\d)\.(?=\d)")
#: The commas of 12,000.
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@dataclass(frozen=True)
class StageLook:
    """One stage's effect on the visual tokens of the sample. All arrays are over all tokens of the unpruned prompt.

    Attributes:
        layer: Tokens were dropped before this layer.
        kept: Which tokens are left after the stage, bool ``[tokens]``.
        scores: The method's preference, the higher the more wanted, float32 ``[tokens]``; NaN for tokens that an
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

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """The token that each token ended in, int64 ``[tokens]``: itself where it was kept, -1 where it is in none.

        A token may have been merged into one that was itself merged.
        """
        own = np.arange(len(self.kept))
        out = np.where(self.kept, own, -1 if self.merged is None else np.where(self.merged >= 0, self.merged, -1))
        for _ in own:
            onward = np.where(out >= 0, out[out], -1)
            if np.array_equal(onward, out):
                break
            out = onward
        return out


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
        budget: The budget in words, or empty.
        question: The question, or empty.
        answer: The answer under this method, or None.
        expected: The expected answer, or None.
        score: The task's score of the answer, from 0 (wrong) to 1 (right); None if no task scored it.
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
        if not wanted:
            return self.answer.strip() == self.expected.strip()
        # an "a" may be an article, or the letter of a choice
        pairs = itertools.product(_with_and_without_article(said), _with_and_without_article(wanted))
        return any(one[: len(other)] == other for one, other in pairs)

    @property
    def tokens(self) -> int:
        """Visual tokens before the first stage."""
        return len(self.cells)

    @property
    def kept(self) -> NDArray[np.bool_]:
        """The tokens that are left after the last stage, bool ``[tokens]``."""
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

    def centres(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """The middles of the cells of some tokens in shares of their pictures, ``[tokens, (x, y)]``.

        Args:
            tokens: Numbers of the tokens. Those that are on no picture have NaN.
        """
        grids = [(*view.box[:2], view.columns, view.rows, view.width, view.height) for view in self.views]
        view, row, column = self.cells[tokens].T
        corner, counts, size = np.split(np.array(grids)[view].reshape(-1, 6), 3, axis=1)
        middles: NDArray[np.float64] = corner + (np.stack([column, row], axis=1) + 0.5) / counts * size
        middles[view < 0] = np.nan
        return middles


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; a number with its sign and its decimals is one word."""
    plain = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    plain = THOUSANDS.sub("", plain).replace("\N{MINUS SIGN}", "-")
    numbers = {place for found in PARTS_OF_NUMBERS.finditer(plain) for place in range(*found.span())}
    out = ""
    for place, char in enumerate(plain):
        kind = unicodedata.category(char)[0]
        # marks, like the vowels of Hindi and Thai, belong to their letters; those of emoji do not count
        counts = kind in "LN" or (kind == "M" and out[-1:].strip()) or char == "_" or place in numbers
        out += char if counts else " "
    return out.split()


def _with_and_without_article(found: list[str]) -> list[list[str]]:
    return [found, found[1:]] if len(found) > 1 and found[0] in ARTICLES else [found]
