"""FrameFusion against literal merging, token by token, in float64; by value, and by what survives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.pruners.test_visionzip import pruned_states
from tests.support.literal import cosine, exact_vectors, record
from tests.support.tiny import CASES
from tests.support.video import VIDEOS, Place, assert_no_transfer, places_of
from tokenprune.errors import ScoreError
from tokenprune.pruners.framefusion import FrameFusion
from tokenprune.pruners.stages import Stages
from tokenprune.testing import make_context

THREE = {"name": "fixed", "layers": [0, 1, 2]}


def literal(
    states: list[Tensor], coordinates: list[Place | None], images: list[int], fewest: int, threshold: float | None
) -> dict[int, Tensor]:
    """Number of each token that is left -> its state. Without a threshold exactly ``fewest`` are left."""
    chains: dict[tuple[int, int], list[int]] = {}
    for i in sorted((i for i, p in enumerate(coordinates) if p is not None), key=lambda i: (images[i], coordinates[i])):  # type: ignore[arg-type, return-value]
        chains.setdefault(coordinates[i][1:], []).append(i)  # type: ignore[index]
    before = {i: chain[k - 1] for chain in chains.values() for k, i in enumerate(chain) if k}
    alike = {i: cosine(states[i], states[j]) for i, j in before.items()}
    own = []
    for image in sorted(set(images)):
        mine = [i for i in range(len(states)) if images[i] == image]
        own.append(min(mine, key=lambda i: (alike.get(i, -2), i)))
    # least alike first: these stay; what has nothing before it goes first of all
    order = own + [i for i in sorted(range(len(states)), key=lambda i: (alike.get(i, -2), i)) if i not in own]
    left = fewest
    if threshold is not None:
        left = max(fewest, sum(i in own or alike.get(i, -2) < threshold for i in range(len(states))))
    kept = set(order[:left])
    result = {}
    for i in kept:
        members = [i]
        for j in chains.get(coordinates[i][1:], [i]) if coordinates[i] is not None else [i]:  # type: ignore[index]
            if j not in kept and j in before and before[j] == members[-1]:
                members.append(j)
        result[i] = torch.stack([states[j] for j in members]).mean(0)
    return result


def merged(
    states: Tensor, frames: list[int], side: int, fewest: int, threshold: float, open_ended: bool
) -> list[dict[int, Tensor]]:
    """The pruner on bare tensors: samples of one video each."""
    width = states.shape[1]
    sizes = [number * side * side for number in frames]
    index = torch.arange(width)
    real = index < torch.tensor(sizes)[:, None]
    grid = torch.stack([index // side**2, index // side % side, index % side], -1).expand(len(states), -1, -1)
    ctx = make_context(states, real, keep=fewest, grid=grid, open_ended=open_ended)
    selection = FrameFusion(threshold=threshold).select(ctx)
    assert not any(bool(bad.any()) for bad, _ in ctx.checks)
    assert selection.hidden is not None
    return [
        {i: selection.hidden[sample, i].double() for i in row.nonzero()[:, 0].tolist()}
        for sample, row in enumerate(selection.keep)
    ]


def agree(actual: dict[int, Tensor], expected: dict[int, Tensor]) -> None:
    assert sorted(actual) == sorted(expected)
    for i, state in expected.items():
        torch.testing.assert_close(actual[i], state.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fewest", [1, 6, 15])
@pytest.mark.parametrize("kind", ["ties", "drift"])
@pytest.mark.parametrize("seed", range(4))
def test_chains_merge_by_value(seed: int, kind: str, fewest: int) -> None:
    """Chains over several frames, in videos of unequal length; exact duplicates, or states that drift away."""
    frames, side = [7, 3, 2], 3
    if kind == "ties":
        states = torch.stack([exact_vectors(63, 3, 10 * seed + sample) for sample in range(3)])
    else:
        noise = torch.Generator().manual_seed(seed)
        steps = torch.randn(3, 7, 9, 12, generator=noise) * torch.rand(3, 7, 9, 1, generator=noise)
        states = (torch.randn(3, 1, 9, 12, generator=noise) + steps.cumsum(1)).flatten(1, 2)
    for threshold in (0.6, None):
        actual = merged(states, frames, side, fewest, threshold or 0.6, threshold is not None)
        sizes = []
        for sample, number in enumerate(frames):
            coordinates: list[Place | None] = [(f, r, c) for f in range(number) for r in range(3) for c in range(3)]
            own = list(states[sample, : len(coordinates)].double())
            agree(actual[sample], literal(own, coordinates, [0] * len(coordinates), fewest, threshold))
            sizes.append(len(actual[sample]))
        assert threshold is not None or sizes == [fewest] * 3
    assert max(sizes) < 63


def test_a_mean_over_three_frames() -> None:
    """By hand: one cell, the second and third frame like the first, the fourth not, the fifth like the fourth."""
    one, two = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    states = torch.stack([one, 2 * one, 6 * one, two, 3 * two])[None]
    (actual,) = merged(states, [5], 1, 1, 0.6, True)
    agree(actual, {0: 3 * one, 3: 2 * two})


def method(budget: dict[str, Any], layers: dict[str, Any] | None = None, pruner: Any = "framefusion") -> dict[str, Any]:
    return {"layers": layers or {"name": "fixed", "layers": [0]}, "pruner": pruner, "budget": budget}


@pytest.mark.parametrize("threshold", [0.0, 0.1])
@pytest.mark.parametrize("name", list(VIDEOS))
def test_the_engine_merges_videos(name: str, threshold: float) -> None:
    """What enters layer 0, row by row; ragged batches, padded on the left."""
    recording = record(name, "video")
    pruner = {"name": "framefusion", "threshold": threshold}
    kept, rows = pruned_states(recording, method({"name": "adaptive"}, pruner=pruner))
    for sample, images in enumerate(recording.image_positions):
        where = [position for image in images for position in image]
        states = [recording.layer_inputs[0][sample, position] for position in where]
        expected = literal(states, places_of(name, recording), [0] * len(where), 1, threshold)
        entered = {p: state for p, state in zip(kept[sample], rows[sample], strict=True) if p in where}
        agree(entered, {where[i]: state for i, state in expected.items()})


@pytest.mark.parametrize("count", [None, 7, 20])
def test_images_are_frames(count: int | None) -> None:
    recording = record("llava", "multi", batch=3)
    budget = {"name": "adaptive"} if count is None else {"name": "keep_count", "tokens": count}
    kept, rows = pruned_states(recording, method(budget, pruner={"name": "framefusion", "threshold": 0.1}))
    for sample, images in enumerate(recording.image_positions):
        where = [position for image in images for position in image]
        coordinates: list[Place | None] = [(0, i // 4, i % 4) for _ in images for i in range(16)]
        number = [image for image in range(len(images)) for _ in range(16)]
        states = [recording.layer_inputs[0][sample, position] for position in where]
        expected = literal(states, coordinates, number, count or len(images), None if count else 0.1)
        entered = {p: state for p, state in zip(kept[sample], rows[sample], strict=True) if p in where}
        agree(entered, {where[i]: state for i, state in expected.items()})


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("tokens", [4, 9])
def test_the_last_stage_meets_the_count(name: str, tokens: int) -> None:
    """What the threshold leaves, never fewer than the budget, and then exactly the budget."""
    case = CASES[name]
    model = case.build()
    inputs = case.batch(model, 2, "left", variant="multi" if name == "llava" else "video").inputs
    stages = {
        "name": "stages",
        "pruners": [{"name": "framefusion", "threshold": 0.1}] * 2 + [{"name": "topk", "scorer": "fastv"}],
    }
    how = tp.Method.from_dict(method({"name": "keep_count", "tokens": tokens}, THREE, stages))
    alone = tp.Method.from_dict(method({"name": "adaptive"}, pruner={"name": "framefusion", "threshold": 0.1}))
    with torch.no_grad(), tp.apply(model, alone) as run:
        model(**inputs)
    merged_once = run.stages[0].after
    with torch.no_grad(), tp.apply(model, how) as run:
        cached = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        first, second, last = run.stages
    assert first.after == [max(tokens, count) for count in merged_once]
    assert all(tokens <= two <= one for one, two in zip(first.after, second.after, strict=True))
    assert last.after == [tokens] * 2
    with torch.no_grad(), tp.apply(model, how):
        again = model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(cached, again)


def test_a_schedule_is_exact_at_every_stage() -> None:
    case = CASES["llava"]
    model = case.build()
    inputs = case.batch(model, 2, "left", variant="multi").inputs
    how = tp.Method.from_dict(
        method({"name": "keep_schedule", "tokens": [20, 12]}, {"name": "fixed", "layers": [0, 1]})
    )
    with torch.no_grad(), tp.apply(model, how) as run:
        model(**inputs)
    assert [stage.after for stage in run.stages] == [[20, 20], [12, 12]]


def test_one_image_has_nothing_to_merge() -> None:
    with pytest.raises(ScoreError, match="sample 0 has no two frames"):
        record("llava").kept(method({"name": "keep_count", "tokens": 5}))


def test_published_defaults() -> None:
    made = tp.load_method("framefusion")
    assert isinstance(made.pruner, Stages)
    assert made.pruner.pruners[0] == made.pruner.pruners[1] == FrameFusion() == FrameFusion(threshold=0.6)
    assert made.budget.ratio == 0.3  # type: ignore[attr-defined]


@pytest.mark.parametrize("open_ended", [True, False])
def test_nothing_waits_for_the_device(open_ended: bool) -> None:
    assert_no_transfer(FrameFusion(), open_ended)
