"""SCOPE against a literal greedy coverage in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.literal import cosine, exact_vectors, record
from tests.support.tower import attention, features
from tokenprune.budgets.base import Schedule
from tokenprune.ops.cosine import self_similarity
from tokenprune.ops.greedy import greedy_coverage
from tokenprune.pruners.scope import Scope


def literal(states: list[Tensor], saliency: list[float], count: int, alpha: float = 1.0) -> list[int]:
    """Indices that greedy coverage keeps; ties go to the smaller index."""
    tokens = range(len(states))
    similar = [[cosine(states[i], states[j]) if i != j else 1.0 for j in tokens] for i in tokens]
    kept: list[int] = []
    while len(kept) < count:
        gains = {}
        for i in tokens:
            if i in kept:
                continue
            gain = 0.0
            for j in tokens:
                covered = max([0.0, *(similar[k][j] for k in kept)])
                more = similar[i][j] - covered
                gain += more if more > 1e-6 else 0.0
            gains[i] = gain * saliency[i] ** alpha
        kept.append(next(i for i in gains if gains[i] >= max(gains.values()) * (1 - 1e-5)))
    return sorted(kept)


def published(states: Tensor, saliency: Tensor, count: int, alpha: float) -> list[int]:
    """How the paper's code states it: chosen columns are zeroed, all gains made anew at each step."""
    unit = states.double() / states.double().norm(dim=1, keepdim=True)
    cosines, covered = unit @ unit.T, torch.zeros(len(states), dtype=torch.float64)
    kept: list[int] = []
    for _ in range(count):
        gains = torch.stack([(column - covered).clamp(min=0).sum() for column in cosines.T])
        gains = gains * saliency.double() ** alpha
        gains[kept] = -1
        kept.append(int(gains.argmax()))
        covered = torch.maximum(covered, cosines[kept[-1]])
    return sorted(kept)


def chosen(states: Tensor, saliency: Tensor, count: int, alpha: float = 1.0) -> list[int]:
    valid = torch.ones(1, len(states), dtype=torch.bool)
    made = greedy_coverage(self_similarity(states[None]), saliency[None] ** alpha, valid, torch.tensor([count]), count)
    return made[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_random_tokens(seed: int, alpha: float) -> None:
    noise = torch.Generator().manual_seed(seed)
    states = torch.randn(20, 8, generator=noise)
    saliency = torch.randn(20, generator=noise).softmax(0)
    for count in (1, 2, 7, 20):
        expected = literal(list(states), saliency.tolist(), count, alpha)
        assert chosen(states, saliency, count, alpha) == expected
        if alpha > 0:  # two tokens that would cover only each other tie: there rounding decides
            assert expected == published(states, saliency, count, alpha)


@pytest.mark.parametrize("distinct", [1, 3, 6])
@pytest.mark.parametrize("seed", range(4))
def test_duplicates_and_ties_keep_the_earlier_position(seed: int, distinct: int) -> None:
    states = exact_vectors(14, distinct, seed)
    weights = torch.randint(0, 2, (14,), generator=torch.Generator().manual_seed(seed))
    for saliency in (torch.full((14,), 0.25), 0.5 ** (1 + weights)):
        for count in (1, 2, 5, 10, 14):
            assert chosen(states, saliency, count) == literal(list(states), saliency.tolist(), count)


def test_duplicates_count_as_covered_in_spite_of_rounding() -> None:
    """Scaled copies have cosines of about 1 - 1e-7; when all is covered, the earliest tokens fill the quota."""
    noise = torch.Generator().manual_seed(0)
    base = torch.randn(3, 33, generator=noise)
    which = [0, 0, 1, 1, 2, 2, 0, 1]
    states = base[which] * (0.5 + torch.rand(8, 1, generator=noise))
    saliency = torch.rand(8, generator=noise)
    three = chosen(states, saliency, 3)
    assert sorted(which[i] for i in three) == [0, 1, 2]
    left = [i for i in range(8) if i not in three]
    assert chosen(states, saliency, 5) == sorted([*three, *left[:2]])


def test_the_most_salient_of_each_cluster_comes_first() -> None:
    noise = torch.Generator().manual_seed(0)
    states = torch.eye(4, 8).repeat_interleave(5, dim=0) + 0.001 * torch.randn(20, 8, generator=noise)
    saliency = torch.full((20,), 0.1)
    saliency[[3, 5, 12, 19]] = 0.2
    assert chosen(states, saliency, 4) == [3, 5, 12, 19]


def test_images_do_not_affect_each_other() -> None:
    noise = torch.Generator().manual_seed(0)
    states, saliency = torch.randn(3, 9, 5, generator=noise), torch.rand(3, 9, generator=noise)
    sizes, counts = [9, 4, 1], [3, 4, 1]
    valid = torch.arange(9) < torch.tensor(sizes)[:, None]
    kept = greedy_coverage(self_similarity(states), saliency, valid, torch.tensor(counts), 4)
    for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        expected = literal(list(states[number, :size]), saliency[number].tolist(), count)
        assert kept[number].nonzero()[:, 0].tolist() == expected


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    states, weight = torch.empty(2, 9, 5, device="meta"), torch.empty(2, 9, device="meta")
    valid, quotas = torch.ones(2, 9, dtype=torch.bool, device="meta"), torch.ones(2, dtype=torch.long, device="meta")
    assert greedy_coverage(self_similarity(states), weight, valid, quotas, 4).shape == (2, 9)


@pytest.mark.parametrize(
    ("name", "variant"),
    [("llava", "image"), ("llava", "multi"), ("llava", "ragged"), ("vipllava", "multi"), ("llava_qwen3", "ragged")],
)
@pytest.mark.parametrize(("layer", "compare"), [(-2, "tower"), (-1, "tower"), (-2, "projected")])
def test_the_engine_keeps_what_the_definition_says(name: str, variant: Any, layer: int, compare: str) -> None:
    """Ragged batches, padded on the left, of prompts with several images."""
    recording = record(name, variant, batch=3)
    saliency, tower = attention(recording, name, layer), features(recording, name, layer)
    expected = []
    for sample, images in enumerate(recording.image_positions):
        kept: list[int] = []
        for number, (image, count) in enumerate(zip(images, recording.quotas(sample, 7), strict=True)):
            projected = [recording.layer_inputs[0][sample, position] for position in image]
            states = tower[sample][number] if compare == "tower" else projected
            kept += [image[i] for i in literal(states, saliency[sample][number], count)]
        expected.append(sorted(kept))
    method = {
        "layers": {"name": "fixed", "layers": [0]},
        "pruner": {"name": "scope", "layer": layer, "compare": compare},
        "budget": {"name": "keep_count", "tokens": 7},
    }
    assert recording.kept(method) == expected


def test_published_defaults() -> None:
    """64 of LLaVA-1.5's 576 tokens, before the language model."""
    made = tp.load_method("scope")
    assert made.pruner == Scope() == Scope(alpha=1.0, layer=-2, compare="tower")
    assert made.layers.layers == (0,)  # type: ignore[attr-defined]
    assert made.budget.keep(576, Schedule((0,), 32)) == (64,)
