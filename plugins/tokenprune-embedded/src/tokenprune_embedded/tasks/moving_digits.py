"""The video task: one-word questions about clips of handwritten digits that appear and move."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field

from tokenprune.authoring import Sample, Task, different_images
from tokenprune_embedded.tasks import clips, scenes
from tokenprune_embedded.tasks.digits import says
from tokenprune_embedded.tasks.splits import SPLITS, Split, calibration_split

Kind = Literal["move", "direction", "last"]


class MovingDigits(Task):
    """Questions about two or three digits in a clip of eight frames.

    Types: ``move`` (the digit that moves), ``direction`` (left, right, up or down) and ``last`` (the digit that
    appears last). Every clip is asked one question of each type. No single frame answers any of them.

    Attributes:
        split: Which handwritten digits are drawn from; no digit is in two splits.
        questions: How many.
        seed: Seed of the clips.
        types: Which question types.
    """

    split: Split = "test"
    questions: int = Field(default=1200, ge=1, le=20_000)
    seed: int = 0
    types: tuple[Kind, ...] = Field(default=("move", "direction", "last"), min_length=1)

    def samples(self) -> Sequence[Sample]:
        """The samples, the same ones in the same order on every call and every machine."""
        return _samples(self.split, self.questions, self.seed, self.types)

    def score(self, sample: Sample, text: str) -> float:
        """1 if the first word of the text is the expected one, as a word or as a figure."""
        return float(says(text) == sample.answer)

    def calibration(self, count: int) -> Sequence[Sample]:
        """Samples of different clips of a split that this task does not measure; see :func:`calibration_split`."""
        split = calibration_split(self.split)
        unseen = self.model_copy(update={"split": split, "questions": len(self.types) * count})
        return different_images(unseen.samples(), count)


def clip(split: Split, seed: int, number: int) -> clips.Clip:
    """One clip of a split."""
    rng = np.random.default_rng([1, seed, SPLITS.index(split), number])  # never a scene's stream
    return clips.draw(rng, scenes.pool(split), int(rng.integers(2, clips.MOST + 1)))


@functools.lru_cache(maxsize=2)
def _samples(split: Split, count: int, seed: int, types: tuple[Kind, ...]) -> tuple[Sample, ...]:
    made: list[Sample] = []
    number = 0
    while len(made) < count:
        drawn = clip(split, seed, number)
        frames = tuple(Image.fromarray(frame) for frame in drawn.pixels)
        group = f"moving-digits-{split}-{seed}-{number}"
        for kind in clips.TYPES:
            if kind in types:
                asked = clips.ask(drawn, kind)
                name = f"{group}-{kind}"
                made.append(Sample(name, frames, asked.text, asked.answer, kind, group, tuple(drawn.foreground)))
        number += 1
    return tuple(made[:count])
