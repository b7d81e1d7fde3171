"""DivPrune against a literal max-min selection in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.literal import Recording, cosine, exact_vectors, record
from tokenprune.budgets.base import Schedule
from tokenprune.ops.cosine import self_similarity
from tokenprune.ops.greedy import max_min
from tokenprune.pruners.max_min import MaxMin


def literal(states: list[Tensor], count: int, allowed: list[int] | None = None) -> list[int]:
    """Indices that greedy max-min keeps; ties go to the smaller index."""
    candidates = list(range(len(states))) if allowed is None else sorted(allowed)

    def distance(i: int, j: int) -> float:
        return max(0.0, 1 - cosine(states[i], states[j])) if i != j else 0.0

    kept: list[int] = []
    while len(kept) < count:
        best, where = -1.0, -1
        for i in candidates:
            if i in kept:
                continue
            others = kept if kept else [j for j in candidates if j != i]
            nearest = min((distance(i, j) for j in others), default=0.0)
            if nearest > best + 1e-9:
                best, where = nearest, i
        kept.append(where)
    return sorted(kept)


def published(states: Tensor, count: int) -> list[int]:
    """How the paper's code states the start: the second-smallest entry of each column of the distance matrix."""
    unit = states.double() / states.double().norm(dim=1, keepdim=True)
    matrix = 1 - unit @ unit.T
    kept: list[int] = []
    for step in range(count):
        scores = matrix.sort(dim=0).values[1] if step == 0 else matrix[kept].min(dim=0).values
        kept.append(int(scores.argmax()))
    return sorted(kept)


def chosen(states: Tensor, count: int, candidates: Tensor | None = None) -> list[int]:
    distance = 1 - self_similarity(states[None])
    allowed = torch.ones(1, len(states), dtype=torch.bool) if candidates is None else candidates[None]
    return max_min(distance, allowed, torch.tensor([count]), count)[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_random_tokens(seed: int) -> None:
    states = torch.randn(20, 8, generator=torch.Generator().manual_seed(seed))
    for count in (1, 2, 7, 20):
        assert chosen(states, count) == literal(list(states), count) == published(states, count)


@pytest.mark.parametrize("distinct", [1, 3, 6])
@pytest.mark.parametrize("seed", range(4))
def test_duplicates_and_ties_keep_the_earlier_position(seed: int, distinct: int) -> None:
    states = exact_vectors(14, distinct, seed)
    for count in (1, 2, 5, 10, 14):
        assert chosen(states, count) == literal(list(states), count)


def test_duplicates_count_as_such_in_spite_of_rounding() -> None:
    """Scaled copies are at a distance of about 1e-7 from each other, not 0."""
    noise = torch.Generator().manual_seed(0)
    base = torch.randn(3, 33, generator=noise)
    states = base[[0, 0, 1, 1, 2, 2, 0, 1]] * (0.5 + torch.rand(8, 1, generator=noise))
    three = chosen(states, 3)
    assert sorted([0, 0, 1, 1, 2, 2, 0, 1][i] for i in three) == [0, 1, 2]
    left = [i for i in range(8) if i not in three]
    assert chosen(states, 5) == sorted([*three, *left[:2]])


def test_one_of_each_cluster_comes_first() -> None:
    noise = torch.Generator().manual_seed(0)
    centres = torch.eye(4, 8) * 10
    states = centres.repeat_interleave(5, dim=0) + 0.01 * torch.randn(20, 8, generator=noise)
    assert sorted(i // 5 for i in chosen(states, 4)) == [0, 1, 2, 3]


def test_images_do_not_affect_each_other() -> None:
    noise = torch.Generator().manual_seed(0)
    states = torch.randn(3, 9, 5, generator=noise)
    sizes, counts = [9, 4, 1], [3, 4, 1]
    valid = torch.arange(9) < torch.tensor(sizes)[:, None]
    kept = max_min(1 - self_similarity(states), valid, torch.tensor(counts), 4)
    for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        assert kept[number].nonzero()[:, 0].tolist() == literal(list(states[number, :size]), count)


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    states = torch.empty(2, 9, 5, device="meta")
    valid, quotas = torch.ones(2, 9, dtype=torch.bool, device="meta"), torch.ones(2, dtype=torch.long, device="meta")
    assert max_min(1 - self_similarity(states), valid, quotas, 4).shape == (2, 9)


def method(pruner: Any, tokens: int, layer: int = 0) -> dict[str, Any]:
    return {
        "layers": {"name": "fixed", "layers": [layer]},
        "pruner": pruner,
        "budget": {"name": "keep_count", "tokens": tokens},
    }


def expected(recording: Recording, tokens: int, layer: int, pools: list[list[int]] | None = None) -> list[list[int]]:
    kept_by_sample = []
    for sample, images in enumerate(recording.image_positions):
        kept: list[int] = []
        for image, count in zip(images, recording.quotas(sample, tokens), strict=True):
            states = [recording.layer_inputs[layer][sample, position] for position in image]
            allowed = None if pools is None else [i for i, p in enumerate(image) if p in pools[sample]]
            kept += [image[i] for i in literal(states, count, allowed)]
        kept_by_sample.append(sorted(kept))
    return kept_by_sample


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize(
    ("name", "variant"),
    [("llava", "image"), ("llava", "multi"), ("llava", "ragged"), ("llava_next", "ragged"), ("qwen2_5_vl", "multi")],
)
def test_the_engine_keeps_what_the_definition_says(name: str, variant: Any, layer: int) -> None:
    recording = record(name, variant, batch=3)
    assert recording.kept(method({"name": "max_min"}, 7, layer)) == expected(recording, 7, layer)


def test_a_pool_takes_the_best_by_another_score() -> None:
    """The pool is what top-k keeps with twice the number; the diverse choice is made within it."""
    recording = record("llava", "multi")
    scorer = {"name": "norm", "source": "hidden"}
    pool = recording.kept(method({"name": "topk", "scorer": scorer}, 12))
    assert recording.kept(method({"name": "max_min", "pool": scorer}, 6)) == expected(recording, 6, 0, pool)
    narrow = {"name": "max_min", "pool": scorer, "pool_factor": 1}
    assert recording.kept(method(narrow, 6)) == recording.kept(method({"name": "topk", "scorer": scorer}, 6))
    wide = {"name": "max_min", "pool": scorer, "pool_factor": 100}
    assert recording.kept(method(wide, 6)) == recording.kept(method({"name": "max_min"}, 6))


def test_the_pools_needs_are_captured() -> None:
    recording = record("llava")
    pruner = {"name": "max_min", "pool": {"name": "matrix_entropy"}, "pool_factor": 2.5}
    assert [len(kept) for kept in recording.kept(method(pruner, 5, layer=2))] == [5, 5]
    with pytest.raises(tp.errors.LayerError, match="MaxMin reads query of the layer before layer 0"):
        recording.kept(method(pruner, 5))


def test_the_towers_layers_are_passed_on() -> None:
    scorer = {"name": "vision_attention", "layer": -3}
    assert tp.Method.from_dict(method({"name": "max_min", "pool": scorer}, 5)).pruner.vision_layers == {-3}
    assert tp.Method.from_dict(method({"name": "dpp", "relevance": scorer}, 5)).pruner.vision_layers == {-3}
    assert tp.Method.from_dict(method({"name": "max_min"}, 5)).pruner.vision_layers == set()


def test_nan_is_an_error() -> None:
    recording = record("llava")
    handle = recording.model.get_decoder().layers[0].register_forward_hook(lambda m, a, output: output * float("nan"))
    with pytest.raises(tp.errors.ScoreError, match="MaxMin gave a NaN or infinite score at layer 2"):
        recording.kept(method({"name": "max_min"}, 5, layer=2))
    handle.remove()


def test_published_defaults() -> None:
    """9.8 % of LLaVA-1.5's 576 tokens are 56, before the language model."""
    made = tp.load_method("divprune")
    assert made.pruner == MaxMin()
    assert made.layers.layers == (0,)  # type: ignore[attr-defined]
    assert made.budget.keep(576, Schedule((0,), 32)) == (56,)
