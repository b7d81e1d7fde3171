"""The digits task: one-word questions about scenes of real handwritten digits."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from tokenprune.authoring import Sample, Task, different_images, first_word
from tokenprune_embedded.tasks import scenes
from tokenprune_embedded.tasks.splits import SPLITS, Split, calibration_split

Kind = Literal["recognise", "attribute", "exist", "count", "locate"]


class Digits(Task):
    """Questions about one to three coloured handwritten digits on a dim, noisy picture.

    Types: ``recognise`` (the digit of a colour), ``attribute`` (the colour of a digit), ``exist`` (yes or no) and
    ``locate`` (the digit furthest to a side). Every scene is asked one question of each type, so any number of
    questions is balanced over the types, and a smaller number is a prefix of a larger one. A fifth type, ``count``, is
    left out by default: the embedded model counts by how *dense* the digits are among the tokens it sees, so dropping
    background changes the answer however well the tokens are chosen (training/README.md has the figures).

    Attributes:
        split: Which handwritten digits are drawn from; no digit is in two splits.
        questions: How many.
        seed: Seed of the scenes and questions.
        types: Which question types; the questions of one type do not depend on which others are asked.
    """

    split: Split = "test"
    questions: int = Field(default=1200, ge=1, le=20_000)
    seed: int = 0
    types: tuple[Kind, ...] = Field(default=("recognise", "attribute", "exist", "locate"), min_length=1)

    def samples(self) -> Sequence[Sample]:
        """The samples, the same ones in the same order on every call and every machine."""
        return _samples(self.split, self.questions, self.seed, self.types)

    def score(self, sample: Sample, text: str) -> float:
        """1 if the first word of the text is the expected one, as a word or as a figure."""
        return float(says(text) == sample.answer)

    def calibration(self, count: int) -> Sequence[Sample]:
        """Samples of different pictures of a split that this task does not measure; see :func:`calibration_split`."""
        split = calibration_split(self.split)
        unseen = self.model_copy(update={"split": split, "questions": len(self.types) * count})
        return different_images(unseen.samples(), count)


def says(text: str) -> str:
    """The first word of an answer, a one-figure number as a word."""
    said = first_word(text)
    return scenes.WORDS[int(said)] if said.isdecimal() and int(said) < len(scenes.WORDS) else said


def scene(split: Split, seed: int, number: int) -> tuple[scenes.Scene, np.random.Generator]:
    """One scene of a split, and the generator that goes on to draw its questions."""
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    return scenes.draw(rng, scenes.pool(split), int(rng.integers(1, scenes.MOST + 1))), rng


@functools.lru_cache(maxsize=4)
def _samples(split: Split, count: int, seed: int, types: tuple[Kind, ...]) -> tuple[Sample, ...]:
    made: list[Sample] = []
    number = 0
    while len(made) < count:
        drawn, rng = scene(split, seed, number)
        picture = Image.fromarray(drawn.pixels)
        group = f"digits-{split}-{seed}-{number}"
        for kind in scenes.TYPES:
            asked = scenes.ask(rng, drawn, kind)  # also when it is not wanted: the generator goes on the same way
            if kind not in types:
                continue
            name = f"{group}-{kind}"
            made.append(Sample(name, (picture,), asked.text, asked.answer, kind, group, (drawn.foreground,)))
        number += 1
    return tuple(made[:count])
