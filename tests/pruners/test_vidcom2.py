"""VidCom2 against a literal choice, token by token, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.video import VIDEOS, Place, assert_no_transfer, chosen, compare_on_images, compare_on_videos
from tokenprune.pruners.vidcom2 import VidCom2


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


@pytest.mark.parametrize("name", list(VIDEOS))
@pytest.mark.parametrize("count", [3, 9, 11])
def test_videos(name: str, count: int) -> None:
    compare_on_videos(literal_vidcom2, "vidcom2", name, count)


@pytest.mark.parametrize("name", ["llava", "vipllava"])
@pytest.mark.parametrize("count", [4, 7, 20])
def test_images_are_frames(name: str, count: int) -> None:
    compare_on_images(literal_vidcom2, "vidcom2", name, count)


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
    """Near a quarter in every frame, more in the odd one out."""
    noise = torch.Generator().manual_seed(0)
    states = torch.randn(1, 1, 49, 64, generator=noise).repeat(1, 8, 1, 1)
    states += 0.01 * torch.randn(states.shape, generator=noise)
    states[:, 3] *= -1
    kept = chosen(states.flatten(1, 2), [8], 7, 98, VidCom2())[0]
    counts = [sum(i // 49 == frame for i in kept) for frame in range(8)]
    # 49 / 4 * (1 + 1 - 1/8) = 22.97 for the third, 49 / 4 * (1 - 1/8) = 10.72 for the others
    assert counts[3] == 23
    assert all(10 <= count <= 11 for count in counts[:3] + counts[4:])


@pytest.mark.parametrize("open_ended", [True, False])
def test_nothing_waits_for_the_device(open_ended: bool) -> None:
    assert_no_transfer(VidCom2(), open_ended)


def test_published_defaults() -> None:
    made = tp.load_method("vidcom2")
    assert made.pruner == VidCom2() == VidCom2(temperature=0.01, channels=0.5)
    assert made.budget.ratio == 0.25  # type: ignore[attr-defined]
