"""EVS against literal choices, token by token, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.literal import cosine, exact_vectors, record
from tests.support.tiny import CASES
from tests.support.video import VIDEOS, Place, assert_no_transfer, chosen, places_of
from tokenprune.errors import BudgetError, ScoreError
from tokenprune.ops.topk import topk_by_group
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.pruners.evs import Evs
from tokenprune.signals.context import PruneContext


def literal(
    states: list[Tensor], coordinates: list[Place | None], images: list[int], count: int | None, rate: float = 0.75
) -> list[int]:
    """Numbers of the kept tokens; ``images`` is the image of each token."""
    scores = []
    for i, place in enumerate(coordinates):
        before = None if place is None else (place[0] - 1, *place[1:])
        predecessors = [j for j, other in enumerate(coordinates) if other is not None and other == before]
        scores.append(1 - cosine(states[i], states[predecessors[0]]) if predecessors else 255.0)
    order = sorted(range(len(states)), key=lambda i: (-scores[i], i))
    best = [next(i for i in order if images[i] == image) for image in sorted(set(images))]
    if count is None:
        floor = len({i for i in order if scores[i] == 255.0} | set(best))
        count = max(floor, math.floor(len(states) * (1 - rate) + 1e-9))
    return sorted([*best, *[i for i in order if i not in best]][:count])


def method(pruner: str | dict[str, Any], budget: dict[str, Any]) -> dict[str, Any]:
    return {"layers": {"name": "fixed", "layers": [0]}, "pruner": pruner, "budget": budget}


@pytest.mark.parametrize("open_ended", [True, False])
def test_nothing_waits_for_the_device(open_ended: bool) -> None:
    assert_no_transfer(Evs(), open_ended)


@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_one_image_has_nothing_to_compare(name: str) -> None:
    """LLaVA-NeXT's overview and its enlargement are no frames of equal size."""
    recording = record(name)
    with pytest.raises(ScoreError, match="sample 0 has no two frames"):
        recording.kept(method("evs", {"name": "keep_count", "tokens": 5}))


# ---- counts over all images of a sample ---


class Unfair(Pruner):
    """Keeps the last tokens of a sample, all of the count in the last image but what ``spare`` says."""

    shares_quota_itself = True
    spare: int = 1

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"text"})

    def select(self, ctx: PruneContext) -> Selection:
        mine = torch.full_like(ctx.quotas, self.spare)
        mine[:, -1] += ctx.quotas.sum(1) - mine.sum(1)
        return Selection(topk_by_group(ctx.positions.float(), ctx.groups, mine))


def test_a_pruner_may_share_a_count_between_images() -> None:
    """The sample's count stays exact, and a later stage starts from what each image really has."""
    case = CASES["llava"]
    model = case.build()
    inputs = case.batch(model, 2, "left", variant="multi").inputs
    how = tp.Method(
        layers={"name": "fixed", "layers": [0, 2]}, pruner=Unfair(), budget={"name": "keep_schedule", "tokens": [15, 5]}
    )
    with torch.no_grad(), tp.apply(model, how) as run:
        model(**inputs)
    image_positions = [(row == 150).nonzero()[:, 0].split(16) for row in inputs["input_ids"]]
    for stage, count in zip(run.stages, (15, 5), strict=True):
        assert stage.after == [count, count]
        for sample, images in enumerate(image_positions):
            assert [int(torch.isin(image, stage.kept[sample]).sum()) for image in images] == [1, count - 1]


def test_no_image_is_left_without_a_token() -> None:
    case = CASES["llava"]
    model = case.build()
    inputs = case.batch(model, 2, "left", variant="multi").inputs
    budget = {"name": "keep_count", "tokens": 7}
    how = tp.Method(layers={"name": "fixed", "layers": [1]}, pruner=Unfair(spare=0), budget=budget)
    with torch.no_grad(), pytest.raises(ScoreError, match=r"Unfair kept \[\[0, 7\]"), tp.apply(model, how):
        model(**inputs)
    with pytest.raises(BudgetError, match="1 visual tokens for 2 images"):
        record("llava", "multi").kept(method("evs", {"name": "keep_count", "tokens": 1}))


# ---- EVS ---


@pytest.mark.parametrize("budget", [None, 3, 9, 11])
@pytest.mark.parametrize("rate", [0.3, 0.75])
@pytest.mark.parametrize("name", list(VIDEOS))
def test_videos(name: str, rate: float, budget: int | None) -> None:
    """Ragged batches, padded on the left; with separators and class tokens."""
    recording = record(name, "video")
    expected = []
    for sample, images in enumerate(recording.image_positions):
        where = [position for image in images for position in image]
        states = [recording.layer_inputs[0][sample, position] for position in where]
        kept = literal(states, places_of(name, recording), [0] * len(where), budget, rate)
        expected.append([where[i] for i in kept])
    count = {"name": "adaptive"} if budget is None else {"name": "keep_count", "tokens": budget}
    assert recording.kept(method({"name": "evs", "rate": rate}, count)) == expected


@pytest.mark.parametrize("name", ["llava", "vipllava"])
@pytest.mark.parametrize("budget", [None, 2, 7, 20])
def test_images_are_frames(name: str, budget: int | None) -> None:
    """Of the first image all is kept that fits."""
    recording = record(name, "multi", batch=3)
    expected = []
    for sample, images in enumerate(recording.image_positions):
        where = [position for image in images for position in image]
        coordinates: list[Place | None] = [(f, i // 4, i % 4) for f in range(len(images)) for i in range(16)]
        number = [image for image in range(len(images)) for _ in range(16)]
        kept = literal([recording.layer_inputs[0][sample, position] for position in where], coordinates, number, budget)
        expected.append([where[i] for i in kept])
    count = {"name": "adaptive"} if budget is None else {"name": "keep_count", "tokens": budget}
    assert recording.kept(method("evs", count)) == expected


@pytest.mark.parametrize("count", [None, 4, 10, 17])
@pytest.mark.parametrize("distinct", [1, 3, 100])
@pytest.mark.parametrize("seed", range(4))
def test_duplicates_and_ties_keep_the_earlier_position(seed: int, distinct: int, count: int | None) -> None:
    """Videos of different lengths at once; cosines are exact, so equal ones are ties."""
    frames, side = [7, 3, 2], 3
    states = torch.stack([exact_vectors(63, distinct, 10 * seed + sample) for sample in range(3)])
    for rate in (0.5, 0.9):
        expected = []
        for sample, number in enumerate(frames):
            coordinates: list[Place | None] = [(f, r, c) for f in range(number) for r in range(3) for c in range(3)]
            size = len(coordinates)
            expected.append(literal(list(states[sample, :size]), coordinates, [0] * size, count, rate))
        assert chosen(states, frames, side, count, Evs(rate=rate)) == expected


def test_the_published_count() -> None:
    """The larger of the first frame and what the rate leaves: 9 of 18 tokens at 0.9, 25 of 63 at 0.6."""
    states = torch.randn(2, 63, 8, generator=torch.Generator().manual_seed(0))
    assert [len(row) for row in chosen(states, [2, 7], 3, None, Evs(rate=0.9))] == [9, 9]
    assert [len(row) for row in chosen(states, [2, 7], 3, None, Evs(rate=0.6))] == [9, 25]
    assert chosen(states, [2, 7], 3, None, Evs(rate=0.9)) == [list(range(9))] * 2


def test_published_defaults() -> None:
    made = tp.load_method("evs")
    assert made.pruner == Evs() == Evs(rate=0.75)
    assert made.layers.layers == (0,)  # type: ignore[attr-defined]
    assert made.budget.open_ended(0, 1)
