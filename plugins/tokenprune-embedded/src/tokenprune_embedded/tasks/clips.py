"""Clips of handwritten digits that appear and move, and the questions that can be asked about them.

A clip is a handful of small frames over one dim background, with fresh noise in each. Two or three digits appear, each
at a time of its own, and stay; one of them moves, straight and in steps of a patch, from the frame in which it appears.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenprune_embedded.tasks.scenes import COLOURS, DIGIT, INK, PATCH, WORDS, Pool, Question, clouds, enlarge, noise

CANVAS = 98  # pixels; 7 x 7 patches of 14
FRAMES = 8
MOST = 3  # digits in a clip
LATEST = 5  # the last frame in which a digit may appear: three are left to see it move
STEPS = (2, 4)  # patches that the moving digit covers, least and most
WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # word: (rows, columns)
STILL = "nowhere"
TYPES = ("move", "direction", "last")


@dataclass(frozen=True)
class Actor:
    """A digit in a clip.

    Attributes:
        word: What it is.
        colour: Its colour's name.
        start: The first frame that shows it.
        way: Where it moves, or :data:`STILL`.
        path: Top left pixel (row, column) in every frame from ``start`` on.
    """

    word: str
    colour: str
    start: int
    way: str
    path: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Clip:
    """Frames ``[frames, height, width, 3]`` (uint8), the digits by time of appearance, and the mask of their pixels."""

    pixels: NDArray[np.uint8]
    actors: tuple[Actor, ...]
    foreground: NDArray[np.bool_]

    @property
    def mover(self) -> Actor:
        """The digit that moves."""
        return next(actor for actor in self.actors if actor.way != STILL)


def draw(rng: np.random.Generator, digits: Pool, count: int) -> Clip:
    """A clip of ``count`` digits, all of different value and colour."""
    canvas = clouds(rng, CANVAS)
    foreground = np.zeros((FRAMES, CANVAS, CANVAS), dtype=bool)
    pixels = np.stack([canvas + noise(rng, CANVAS) for _ in range(FRAMES)])
    values = rng.permutation(10)[:count]
    names = rng.permutation(list(COLOURS))[:count]
    # no two appear at once: which is first and which is last is never in doubt
    starts = [0, *sorted(int(start) for start in 1 + rng.permutation(LATEST)[: count - 1])]
    moving = int(rng.integers(count))
    way = str(rng.choice(list(WAYS)))
    actors = []
    for number, (value, name, (way_here, route)) in enumerate(
        zip(values, names, _routes(rng, starts, moving, way), strict=True)
    ):
        image = digits.images[rng.choice(np.flatnonzero(digits.labels == value))]
        ink = enlarge(image, DIGIT)[..., None]
        colour = np.asarray(COLOURS[str(name)], dtype=np.float32) + rng.normal(0, 8, 3).astype(np.float32)
        for frame, (top, left) in enumerate(route, starts[number]):
            box = np.s_[frame, top : top + DIGIT, left : left + DIGIT]
            pixels[box] = pixels[box] * (1 - ink) + colour * ink
            foreground[box] = ink[..., 0] > INK
        actors.append(Actor(WORDS[value], str(name), starts[number], way_here, tuple(route)))
    return Clip(np.clip(pixels, 0, 255).astype(np.uint8), tuple(actors), foreground)


def _routes(
    rng: np.random.Generator, starts: list[int], moving: int, way: str
) -> list[tuple[str, list[tuple[int, int]]]]:
    """(way, path) of every digit; what they cover in all frames is at least a patch apart."""
    room = (CANVAS - DIGIT) // PATCH  # the last patch at which a digit can start
    while True:
        begin = rng.integers(0, room + 1, (len(starts), 2))
        step = np.zeros_like(begin)
        step[moving] = np.multiply(WAYS[way], rng.integers(STEPS[0], STEPS[1] + 1))
        end = begin + step
        low, high = np.minimum(begin, end), np.maximum(begin, end) + DIGIT // PATCH
        inside = bool((end >= 0).all() and (end <= room).all())
        apart = all(((low[a] > high[b]) | (low[b] > high[a])).any() for a in range(len(starts)) for b in range(a))
        if inside and apart:
            break
    routes = []
    for number, start in enumerate(starts):
        shares = np.linspace(0, 1, FRAMES - start)[:, None]
        path = PATCH * np.rint(begin[number] + shares * step[number]).astype(int)
        routes.append((way if number == moving else STILL, [(int(row), int(col)) for row, col in path]))
    return routes


def ask(clip: Clip, kind: str) -> Question:
    """The question of a type about a clip."""
    return {
        "move": Question("move", "what digit moves?", clip.mover.word),
        "direction": Question("direction", "which way does it move?", clip.mover.way),
        "last": Question("last", "what digit appears last?", clip.actors[-1].word),
    }[kind]
