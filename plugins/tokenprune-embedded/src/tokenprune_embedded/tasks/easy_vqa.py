"""The easy-VQA data set: one coloured shape per picture, placed on a larger canvas so that most of it is background."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from tokenprune.authoring import ConfigError, MissingDataError, Sample, Task, different_images, first_word
from tokenprune_embedded.tasks.scenes import CANVAS, PATCH, background
from tokenprune_embedded.tasks.splits import Split, calibration_split

SIZE = 56  # pixels of the pasted picture: 4 x 4 patches
HELD_OUT = 400  # pictures of the package's train split that are kept for validation
TYPES = ("color", "shape", "exist", "absent")
COLOURS = ("red", "green", "blue", "yellow", "black", "gray", "teal", "brown")
SHAPES = ("circle", "triangle", "rectangle")


def kind_of(question: str) -> str:
    """The type of a question: colour, shape, or yes/no without or with a negation."""
    words = question.rstrip("?").split()
    if words[0] == "what":
        return "color" if "color" in words else "shape"
    return "absent" if "no" in words or "not" in words else "exist"


@functools.cache
def folder(split: str) -> Path:
    """The folder of one of the package's own two splits.

    Raises:
        MissingDataError: easy-vqa is not installed.
    """
    spec = find_spec("easy_vqa")  # found, not imported
    path = Path(spec.origin).parent / "data" / split if spec and spec.origin else None
    if path is None or not path.is_dir():
        raise MissingDataError("the easy-vqa task needs the package 'easy-vqa'", "pip install easy-vqa==1.0")
    return path


@functools.cache
def questions(split: Split) -> dict[int, list[tuple[str, str]]]:
    """All (question, answer) pairs of a split by picture. Validation is the end of the package's train split."""
    source = "test" if split == "test" else "train"
    by_image: dict[int, list[tuple[str, str]]] = {}
    for question, answer, image in json.loads((folder(source) / "questions.json").read_text(encoding="utf-8")):
        by_image.setdefault(int(image), []).append((str(question), str(answer)))
    order = sorted(by_image)
    chosen = {"test": order, "train": order[:-HELD_OUT], "validation": order[-HELD_OUT:]}[split]
    return {image: by_image[image] for image in chosen}


def complete(split: Split) -> dict[int, list[tuple[str, str]]]:
    """The pictures of a split with questions of every type, as :func:`questions` gives them.

    A few pictures lack a type; leaving them out keeps every number of questions balanced.
    """
    return {i: asked for i, asked in questions(split).items() if {kind_of(text) for text, _ in asked} == set(TYPES)}


def scene(split: Split, image: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A picture on its canvas at a random place of the patch grid, and the mask of its shape's pixels."""
    path = folder("test" if split == "test" else "train") / "images" / f"{image}.png"
    with Image.open(path) as opened:
        picture = np.asarray(opened.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR), dtype=np.float32)
    # the picture's own background is one light colour: what differs from its corner is the shape
    shape = np.abs(picture - picture[0, 0]).max(axis=-1) > 24
    canvas = background(rng)
    foreground = np.zeros((CANVAS, CANVAS), dtype=bool)
    row, col = (int(place) * PATCH for place in rng.integers(0, (CANVAS - SIZE) // PATCH + 1, 2))
    canvas[row : row + SIZE, col : col + SIZE] = picture
    foreground[row : row + SIZE, col : col + SIZE] = shape
    return np.clip(canvas, 0, 255).astype(np.uint8), foreground


class EasyVQA(Task):
    """Questions about the colour and the shape of one figure on a larger canvas.

    Attributes:
        split: The package's test split, or the train split (its last 400 pictures are ``validation``).
        questions: How many; a smaller number is a prefix of a larger one, balanced over the question types.
        seed: Seed of the canvas, the place and the choice of questions.
    """

    split: Split = "test"
    questions: int = Field(default=1200, ge=1)
    seed: int = 0

    def samples(self) -> Sequence[Sample]:
        """The samples, the same ones in the same order on every call and every machine."""
        return _samples(self.split, self.questions, self.seed)

    def score(self, sample: Sample, text: str) -> float:
        """1 if the first word of the text is the expected one."""
        return float(first_word(text) == sample.answer)

    def calibration(self, count: int) -> Sequence[Sample]:
        """Samples of different pictures of a split that this task does not measure; see :func:`calibration_split`."""
        split = calibration_split(self.split)
        unseen = min(count, len(complete(split)))
        asked = self.model_copy(update={"split": split, "questions": len(TYPES) * unseen})
        return different_images(asked.samples(), count)


@functools.lru_cache(maxsize=4)
def _samples(split: Split, count: int, seed: int) -> tuple[Sample, ...]:
    pairs = complete(split)
    order = np.random.default_rng([seed, 1]).permutation(sorted(pairs))
    made: list[Sample] = []
    for image in (int(number) for number in order):
        rng = np.random.default_rng([seed, 2, image])
        pixels, foreground = scene(split, image, rng)
        picture = Image.fromarray(pixels)
        for kind in TYPES:  # one question of every type per picture
            choices = sorted(pair for pair in pairs[image] if kind_of(pair[0]) == kind)
            if kind in ("exist", "absent"):  # as many "yes" as "no", whatever the package's share is
                wanted = ("yes", "no")[int(rng.integers(2))]
                choices = [pair for pair in choices if pair[1] == wanted] or choices
            question, answer = choices[int(rng.integers(len(choices)))]
            name = f"easy-vqa-{split}-{seed}-{image}"
            made.append(Sample(f"{name}-{kind}", (picture,), question, answer, kind, name, (foreground,)))
            if len(made) == count:
                return tuple(made)
    raise ConfigError(f"questions: {count} is more than easy-vqa's {split} split has", f"use at most {len(made)}")
