"""VidCom2 and DyCoke's merging against literal choices, token by token, in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.methods.test_evs import VIDEOS, Place, chosen, places_of
from tests.support.literal import cosine, exact_vectors, record
from tokenprune.errors import ScoreError
from tokenprune.pruners.base import Pruner
from tokenprune.pruners.dycoke import DyCoke
from tokenprune.pruners.evs import Evs
from tokenprune.pruners.framefusion import FrameFusion
from tokenprune.pruners.vidcom2 import VidCom2
from tokenprune.testing import make_context


def lists(state: Tensor) -> list[float]:
    return [float(value) for value in state]


def mean(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def literal_vidcom2(
    states: list[Tensor], coordinates: list[Place | None], images: list[int], count: int, temperature: float = 0.01
) -> list[int]:
    """Numbers of the kept tokens. A frame is numbered by image and frame."""
    frames: dict[tuple[int, int], list[int]] = {}
    for i, place in enumerate(coordinates):
        if place is not None:
            frames.setdefault((images[i], place[0]), []).append(i)
    placed = sorted(i for tokens in frames.values() for i in tokens)
    rows = {i: lists(states[i]) for i in placed}
    width = len(rows[placed[0]])
    centre = mean([rows[i] for i in placed])
    variance = [sum((rows[i][c] - centre[c]) ** 2 for i in placed) / len(placed) for c in range(width)]
    channels = sorted(range(width), key=lambda c: (variance[c], c))[: int(width / 2)]
    rows = {i: [row[c] for c in channels] for i, row in rows.items()}
    length = {i: math.sqrt(sum(value**2 for value in row)) for i, row in rows.items()}
    rows = {i: [value / length[i] for value in row] for i, row in rows.items()}

    def near(row: list[float], middle: list[float]) -> float:
        distance = sum((a - b) ** 2 for a, b in zip(row, middle, strict=True))
        return sum(math.exp(-distance / (2 * alpha)) for alpha in (1 / 8, 1 / 4, 1 / 2, 1, 2))

    video_mean = mean([rows[i] for i in placed])
    score = {}
    unlike = {}
    for frame, tokens in frames.items():
        middle = mean([rows[i] for i in tokens])
        score |= {i: near(rows[i], video_mean) + near(rows[i], middle) for i in tokens}
        unlike[frame] = -sum(near(rows[i], video_mean) for i in tokens) / len(tokens)
    top = max(unlike.values())
    weights = {frame: math.exp((value - top) / temperature) for frame, value in unlike.items()}
    chance = {frame: weight / sum(weights.values()) for frame, weight in weights.items()}
    loose = [i for i in range(len(coordinates)) if i not in rows]
    rate = max(0, count - len(loose)) / len(placed)
    share = {f: min(rate * (1 + chance[f] - 1 / len(frames)) * len(frames[f]), len(frames[f])) for f in frames}
    share = {f: round(value * 1024) / 1024 for f, value in share.items()}
    queue = {f: sorted(tokens, key=lambda i: (score[i], i)) for f, tokens in frames.items()}
    kept = loose[:count]
    counts = dict.fromkeys(frames, 0)
    while len(kept) < count:
        open_ = [f for f in frames if counts[f] < len(queue[f])]
        # a frame without a token goes first; then the one that is furthest below its share
        best = min(open_, key=lambda f: (counts[f] > 0, -(share[f] - counts[f]), queue[f][counts[f]]))
        kept.append(queue[best][counts[best]])
        counts[best] += 1
    return sorted(kept)


def literal_merge(
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


LITERALS = {"vidcom2": literal_vidcom2, "dycoke": literal_merge}
ADAPTIVE = ("dycoke", None)


def method(pruner: str, count: int | None) -> dict[str, Any]:
    budget = {"name": "adaptive"} if count is None else {"name": "keep_count", "tokens": count}
    return {"layers": {"name": "fixed", "layers": [0]}, "pruner": pruner, "budget": budget}


@pytest.mark.parametrize("name", list(VIDEOS))
@pytest.mark.parametrize(("pruner", "count"), [ADAPTIVE, *itertools.product(LITERALS, (3, 9, 11))])
def test_videos(pruner: str, name: str, count: int | None) -> None:
    """Ragged batches, padded on the left; with separators and class tokens."""
    recording = record(name, "video")
    expected = []
    for sample, images in enumerate(recording.image_positions):
        where = [position for image in images for position in image]
        states = [recording.layer_inputs[0][sample, position] for position in where]
        kept = LITERALS[pruner](states, places_of(name, recording), [0] * len(where), count)  # type: ignore[operator]
        expected.append([where[i] for i in kept])
    assert recording.kept(method(pruner, count)) == expected


@pytest.mark.parametrize("name", ["llava", "vipllava"])
@pytest.mark.parametrize(("pruner", "count"), [ADAPTIVE, *itertools.product(LITERALS, (4, 7, 20))])
def test_images_are_frames(pruner: str, name: str, count: int | None) -> None:
    """Exact counts per sample, at least one token per image."""
    recording = record(name, "multi", batch=3)
    expected = []
    for sample, images in enumerate(recording.image_positions):
        where = [position for image in images for position in image]
        coordinates: list[Place | None] = [(0, i // 4, i % 4) for _ in images for i in range(16)]
        number = [image for image in range(len(images)) for _ in range(16)]
        states = [recording.layer_inputs[0][sample, position] for position in where]
        kept = LITERALS[pruner](states, coordinates, number, count)  # type: ignore[operator]
        expected.append([where[i] for i in kept])
    assert recording.kept(method(pruner, count)) == expected


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
                literal_merge(list(states[sample, : len(coordinates)]), coordinates, [0] * len(coordinates), wanted)
            )
        assert chosen(states, frames, side, wanted, DyCoke()) == expected


@pytest.mark.parametrize("count", [2, 5, 10, 17])
@pytest.mark.parametrize("kind", ["random", "still", "cut", "burst"])
@pytest.mark.parametrize("seed", range(3))
def test_frames_share_by_how_unlike_they_are(seed: int, kind: str, count: int) -> None:
    """Noise; frames that hardly change; a cut in the middle; one frame that is unlike all others."""
    noise = torch.Generator().manual_seed(seed)
    frames, side = [7, 6, 2], 3
    states = torch.randn(3, 7, 9, 24, generator=noise)
    if kind != "random":
        still = torch.randn(3, 1, 9, 24, generator=noise)
        other = torch.randn(3, 1, 9, 24, generator=noise)
        late = torch.arange(7)[None, :, None, None] >= (1 if kind == "cut" else 7)
        states = torch.where(late, other, still) + 0.05 * states
        if kind == "burst":
            states[:, 1] += 2 * other[:, 0]
    flat = states.flatten(1, 2)
    expected = []
    for sample, number in enumerate(frames):
        coordinates: list[Place | None] = [(f, r, c) for f in range(number) for r in range(3) for c in range(3)]
        expected.append(
            literal_vidcom2(list(flat[sample, : len(coordinates)]), coordinates, [0] * len(coordinates), count)
        )
    assert chosen(flat, frames, side, count, VidCom2()) == expected


def test_the_published_counts() -> None:
    """DyCoke: 4 + 3 * floor(0.3 * 49) of 4 * 49. VidCom2: near a quarter in every frame, more in the odd one out."""
    noise = torch.Generator().manual_seed(0)
    states = torch.randn(1, 8 * 49, 16, generator=noise)
    kept = chosen(states, [8], 7, None, DyCoke())[0]
    assert [sum(i // 49 == frame for i in kept) for frame in range(8)] == [49, 14, 14, 14] * 2
    states = torch.randn(1, 1, 49, 16, generator=noise).repeat(1, 8, 1, 1)
    states += 0.01 * torch.randn(states.shape, generator=noise)
    states[:, 3] = torch.randn(49, 16, generator=noise)
    kept = chosen(states.flatten(1, 2), [8], 7, 98, VidCom2())[0]
    counts = [sum(i // 49 == frame for i in kept) for frame in range(8)]
    # 49 / 4 * (1 + 1 - 1/8) = 22.97 for the third, 49 / 4 * (1 - 1/8) = 10.72 for the others
    assert counts[3] == 23
    assert all(10 <= count <= 11 for count in counts[:3] + counts[4:])


def test_one_image_has_nothing_to_merge() -> None:
    with pytest.raises(ScoreError, match="sample 0 has no two frames"):
        record("llava").kept(method("dycoke", 5))


@pytest.mark.parametrize("open_ended", [True, False])
@pytest.mark.parametrize("pruner", [Evs(), FrameFusion(), DyCoke(), VidCom2()], ids=lambda one: type(one).__name__)
def test_nothing_waits_for_the_device(pruner: Pruner, open_ended: bool) -> None:
    """The meta device has no values: whatever asks for one raises."""
    ctx = make_context(
        torch.empty(2, 18, 8, device="meta"),
        sizes=[[9, 9], [9, 9]],
        keep=3,
        grid=torch.empty(2, 18, 3, dtype=torch.long, device="meta"),
        open_ended=open_ended,
    )
    assert pruner.select(ctx).keep.shape == (2, 18)


def test_published_defaults() -> None:
    dycoke, vidcom2 = tp.load_method("dycoke"), tp.load_method("vidcom2")
    assert dycoke.pruner == DyCoke() == DyCoke(rate=0.7)
    assert dycoke.budget.open_ended(0, 1)
    assert vidcom2.pruner == VidCom2() == VidCom2(temperature=0.01, channels=0.5)
    assert vidcom2.budget.ratio == 0.25  # type: ignore[attr-defined]
