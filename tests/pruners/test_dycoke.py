"""DyCoke's merging against a literal choice, token by token, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.literal import cosine, exact_vectors, record
from tests.support.video import VIDEOS, Place, assert_no_transfer, chosen, compare_on_images, compare_on_videos, method
from tokenprune.errors import ScoreError
from tokenprune.pruners.dycoke import DyCoke


def literal_dycoke(
    states: list[Tensor], coordinates: list[Place | None], images: list[int], count: int | None, rate: float = 0.7
) -> list[int]:
    """Numbers of the kept tokens."""
    numbers = sorted({(images[i], place[0]) for i, place in enumerate(coordinates) if place is not None})
    at = {(numbers.index((images[i], p[0])), *p[1:]): i for i, p in enumerate(coordinates) if p is not None}
    frame = {i: key[0] for key, i in at.items()}
    cell = {i: key[1:] for key, i in at.items()}

    def like(i: int, lag: int) -> float | None:
        other = at.get((frame[i] - lag, *cell[i])) if i in frame else None
        return None if other is None else cosine(states[i], states[other])

    similar = {}
    for i in frame:
        lag = {0: None, 1: 1, 2: 2, 3: 1}[frame[i] % 4]
        similarity = None if lag is None else like(i, lag)
        if similarity is not None:
            similar[i] = similarity
    queues = {
        f: sorted((i for i in similar if frame[i] == f), key=lambda i: (similar[i], i)) for f in range(len(numbers))
    }
    uncompared = [i for i in range(len(states)) if i not in similar]
    if count is None:
        kept = set(uncompared)
        for queue in queues.values():
            kept |= set(queue[: math.floor(len(queue) * (1 - rate) + 1e-6)])
        for image in set(images):
            if not any(images[i] == image for i in kept):
                kept.add(min((i for i in similar if images[i] == image), key=lambda i: (similar[i], i)))
        return sorted(kept)
    novelty = {i: like(i, 4) for i in uncompared}
    order = sorted(uncompared, key=lambda i: (-4.0 if novelty[i] is None else novelty[i] - 2, i))  # type: ignore[operator]
    for turn in range(len(states)):
        order += [queue[turn] for queue in queues.values() if turn < len(queue)]
    first = [next(i for i in order if images[i] == image) for image in sorted(set(images))]
    return sorted([*first, *[i for i in order if i not in first]][:count])


@pytest.mark.parametrize("name", list(VIDEOS))
@pytest.mark.parametrize("count", [None, 3, 9, 11])
def test_videos(name: str, count: int | None) -> None:
    compare_on_videos(literal_dycoke, "dycoke", name, count)


@pytest.mark.parametrize("name", ["llava", "vipllava"])
@pytest.mark.parametrize("count", [None, 4, 7, 20])
def test_images_are_frames(name: str, count: int | None) -> None:
    compare_on_images(literal_dycoke, "dycoke", name, count)


@pytest.mark.parametrize("count", [2, 5, 10, 17])
@pytest.mark.parametrize("distinct", [3, 100])
@pytest.mark.parametrize("seed", range(4))
def test_merging_with_duplicates_and_ties(seed: int, distinct: int, count: int) -> None:
    """Videos of different lengths at once, of one and a half groups; cosines are exact, so equal ones are ties."""
    frames, side = [7, 6, 2], 3
    states = torch.stack([exact_vectors(63, distinct, 10 * seed + sample) for sample in range(3)])
    for wanted in (count, None):
        expected = []
        for sample, number in enumerate(frames):
            coordinates: list[Place | None] = [(f, r, c) for f in range(number) for r in range(3) for c in range(3)]
            expected.append(
                literal_dycoke(list(states[sample, : len(coordinates)]), coordinates, [0] * len(coordinates), wanted)
            )
        assert chosen(states, frames, side, wanted, DyCoke()) == expected


def test_the_published_counts() -> None:
    """4 + 3 * floor(0.3 * 49) of 4 * 49."""
    states = torch.randn(1, 8 * 49, 16, generator=torch.Generator().manual_seed(0))
    kept = chosen(states, [8], 7, None, DyCoke())[0]
    assert [sum(i // 49 == frame for i in kept) for frame in range(8)] == [49, 14, 14, 14] * 2


def test_one_image_has_nothing_to_merge() -> None:
    with pytest.raises(ScoreError, match="sample 0 has no two frames"):
        record("llava").kept(method("dycoke", 5))


@pytest.mark.parametrize("open_ended", [True, False])
def test_nothing_waits_for_the_device(open_ended: bool) -> None:
    assert_no_transfer(DyCoke(), open_ended)


def test_published_defaults() -> None:
    made = tp.load_method("dycoke")
    assert made.pruner == DyCoke() == DyCoke(rate=0.7)
    assert made.budget.open_ended(0, 1)
