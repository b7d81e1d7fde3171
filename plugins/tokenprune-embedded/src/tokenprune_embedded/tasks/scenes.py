"""Scenes of real handwritten digits, and the questions that can be asked about them.

A scene is a dim, noisy picture with one to three coloured digits. Every digit covers whole patches of the embedded
model's vision tower, so it is clear which visual tokens carry it. Digits, colours and noise come from one generator:
the same seed draws the same scene on every machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

CANVAS = 168  # pixels; 12 x 12 patches of 14
PATCH = 14
DIGIT = 28  # pixels; 2 x 2 patches
MOST = 3  # digits in a scene
INK = 0.3  # how much of a pixel must be digit to count as foreground

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (235, 50, 50),
    "green": (50, 200, 60),
    "blue": (60, 90, 245),
    "yellow": (240, 225, 50),
    "white": (245, 245, 245),
    "purple": (175, 60, 215),
}
TYPES = ("recognise", "attribute", "exist", "count", "locate")
SIDES = {"left": (1, 1), "right": (1, -1), "top": (0, 1), "bottom": (0, -1)}  # word: (axis, sign)


@dataclass(frozen=True)
class Digit:
    """A digit in a scene: what it is, its colour's name, and its place in patches."""

    word: str
    colour: str
    row: int
    col: int


@dataclass(frozen=True)
class Scene:
    """A picture ``[height, width, 3]`` (uint8), its digits, and the mask of their pixels."""

    pixels: NDArray[np.uint8]
    digits: tuple[Digit, ...]
    foreground: NDArray[np.bool_]


@dataclass(frozen=True)
class Question:
    """A question of one type with its one-word answer."""

    type: str
    text: str
    answer: str


@dataclass(frozen=True)
class Pool:
    """Handwritten digits of one split: ``images`` ``[n, 8, 8]`` in 0..1 and their ``labels`` ``[n]``."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]


@functools.cache
def pool(split: str) -> Pool:
    """The digits of one split. No handwritten digit is in two splits."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    parts = {"train": order[:1297], "validation": order[1297:1497], "test": order[1497:]}
    chosen = parts[split]
    return Pool((data.images[chosen] / 16).astype(np.float32), data.target[chosen].astype(np.int64))


def enlarge(image: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Bilinear enlargement of a small gray picture to ``size`` x ``size``."""
    grid = (np.arange(size) + 0.5) * image.shape[0] / size - 0.5
    low = np.clip(np.floor(grid).astype(int), 0, image.shape[0] - 1)
    high = np.minimum(low + 1, image.shape[0] - 1)
    share = np.clip(grid - low, 0, 1).astype(np.float32)
    rows = image[low] * (1 - share)[:, None] + image[high] * share[:, None]
    wide: NDArray[np.float32] = rows[:, low] * (1 - share) + rows[:, high] * share
    return wide


def clouds(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """A dim canvas of smooth colours, in 0..70."""
    coarse = rng.random((6, 6, 3), dtype=np.float32) * 70
    return np.stack([enlarge(coarse[..., channel], size) for channel in range(3)], axis=-1)


def noise(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Fine noise around 0."""
    return rng.normal(0, 6, (size, size, 3)).astype(np.float32)


def background(rng: np.random.Generator) -> NDArray[np.float32]:
    """A dim canvas: smooth colour clouds and fine noise, in 0..255."""
    return clouds(rng, CANVAS) + noise(rng, CANVAS)


def places(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Places (row, column in patches) for ``count`` digits that do not touch each other."""
    side, step = CANVAS // PATCH, DIGIT // PATCH
    while True:
        drawn = [(int(row), int(col)) for row, col in rng.integers(0, side - step + 1, (count, 2))]
        pairs = [(a, b) for i, a in enumerate(drawn) for b in drawn[:i]]
        if all(max(abs(a[0] - b[0]), abs(a[1] - b[1])) > step for a, b in pairs):
            return drawn


def draw(rng: np.random.Generator, digits: Pool, count: int) -> Scene:
    """A scene of ``count`` digits, all of different value and colour."""
    canvas = background(rng)
    foreground = np.zeros((CANVAS, CANVAS), dtype=bool)
    values = rng.permutation(10)[:count]
    names = rng.permutation(list(COLOURS))[:count]
    drawn = []
    for value, name, (row, col) in zip(values, names, places(rng, count), strict=True):
        image = digits.images[rng.choice(np.flatnonzero(digits.labels == value))]
        ink = enlarge(image, DIGIT)[..., None]
        colour = np.asarray(COLOURS[str(name)], dtype=np.float32) + rng.normal(0, 8, 3).astype(np.float32)
        box = np.s_[row * PATCH : row * PATCH + DIGIT, col * PATCH : col * PATCH + DIGIT]
        canvas[box] = canvas[box] * (1 - ink) + colour * ink
        foreground[box] = ink[..., 0] > INK
        drawn.append(Digit(WORDS[value], str(name), row, col))
    return Scene(np.clip(canvas, 0, 255).astype(np.uint8), tuple(drawn), foreground)


def ask(rng: np.random.Generator, scene: Scene, kind: str) -> Question:
    """One question of a type about a scene."""
    return ASKERS[kind](rng, scene)


def _recognise(rng: np.random.Generator, scene: Scene) -> Question:
    digit = scene.digits[rng.integers(len(scene.digits))]
    return Question("recognise", f"what digit is {digit.colour}?", digit.word)


def _attribute(rng: np.random.Generator, scene: Scene) -> Question:
    digit = scene.digits[rng.integers(len(scene.digits))]
    return Question("attribute", f"what color is the {digit.word}?", digit.colour)


def _exist(rng: np.random.Generator, scene: Scene) -> Question:
    there = [digit.word for digit in scene.digits]
    if rng.random() < 0.5:
        return Question("exist", f"is there a {there[rng.integers(len(there))]}?", "yes")
    absent = [word for word in WORDS if word not in there]
    return Question("exist", f"is there a {absent[rng.integers(len(absent))]}?", "no")


def _count(rng: np.random.Generator, scene: Scene) -> Question:
    return Question("count", "how many digits?", WORDS[len(scene.digits)])


def _locate(rng: np.random.Generator, scene: Scene) -> Question:
    clear = [side for side in SIDES if len(extremes(scene, side)) == 1]
    # three digits can share a row or column; two that share one differ in the other by more than a digit
    side = clear[rng.integers(len(clear))]
    return Question("locate", f"what digit is {side}?", extremes(scene, side)[0].word)


ASKERS: dict[str, Callable[[np.random.Generator, Scene], Question]] = {
    "recognise": _recognise,
    "attribute": _attribute,
    "exist": _exist,
    "count": _count,
    "locate": _locate,
}


def extremes(scene: Scene, side: str) -> list[Digit]:
    """The digits that are furthest to a side, within less than a digit's width: one means the side is unambiguous."""
    axis, sign = SIDES[side]
    far = min(sign * (digit.row, digit.col)[axis] for digit in scene.digits)
    step = DIGIT // PATCH
    return [digit for digit in scene.digits if sign * (digit.row, digit.col)[axis] - far < step]
