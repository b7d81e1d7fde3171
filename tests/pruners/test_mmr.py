"""Maximal marginal relevance against a literal greedy choice in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.literal import Recording, cosine, exact_vectors, record
from tests.support.tower import attention, features
from tokenprune.budgets.base import Schedule
from tokenprune.ops.cosine import self_similarity
from tokenprune.ops.dpp import unit_range
from tokenprune.ops.greedy import maximal_marginal_relevance
from tokenprune.pruners.mmr import Mmr
from tokenprune.scorers.vision_attention import VisionAttention


def literal(states: list[Tensor], scores: list[float], count: int, weight: float = 0.5) -> list[int]:
    """Indices that are kept: all scores made anew at every step; ties go to the smaller index."""
    low, high = min(scores), max(scores)
    importance = [(score - low) / (high - low) if high > low else 0.0 for score in scores]
    kept: list[int] = []
    while len(kept) < count:
        best, where = -float("inf"), -1
        for i in range(len(states)):
            if i in kept:
                continue
            if kept:
                similar = max(cosine(states[i], states[j]) for j in kept)
                value = weight * importance[i] - (1 - weight) * (1.0 if similar > 1 - 1e-6 else similar)
            else:
                value = importance[i]
            if value > best + 1e-7:
                best, where = value, i
        kept.append(where)
    return sorted(kept)


def chosen(states: Tensor, scores: Tensor, count: int, weight: float = 0.5) -> list[int]:
    valid = torch.ones(1, len(states), dtype=torch.bool)
    keep = maximal_marginal_relevance(
        self_similarity(states[None]), unit_range(scores[None], valid), valid, torch.tensor([count]), count, weight
    )
    return keep[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_random_tokens(seed: int, weight: float) -> None:
    noise = torch.Generator().manual_seed(seed)
    states, scores = torch.randn(20, 8, generator=noise), 100 * torch.randn(20, generator=noise)
    for count in (1, 2, 7, 20):
        assert chosen(states, scores, count, weight) == literal(list(states), scores.tolist(), count, weight)


@pytest.mark.parametrize("distinct", [1, 3, 6])
@pytest.mark.parametrize("seed", range(4))
def test_duplicates_and_ties_keep_the_earlier_position(seed: int, distinct: int) -> None:
    states = exact_vectors(14, distinct, seed)
    levels = torch.randint(0, 3, (14,), generator=torch.Generator().manual_seed(seed)).float()
    for scores in (torch.full((14,), 0.25), levels):
        for count in (1, 2, 5, 10, 14):
            assert chosen(states, scores, count) == literal(list(states), scores.tolist(), count)


def test_scaled_copies_are_duplicates_in_spite_of_rounding() -> None:
    """Their cosines are about 1 - 1e-7; between copies of equal importance the earlier position decides."""
    noise = torch.Generator().manual_seed(0)
    states = torch.randn(33, generator=noise) * (0.5 + torch.rand(9, 1, generator=noise))
    states[6] *= -1
    assert chosen(states, torch.tensor([0.5] * 3 + [1.0] + [0.5] * 5), 5) == [0, 1, 2, 3, 6]


def test_the_weight_says_what_counts() -> None:
    """With 1 the highest scores are kept; with 0 only the first token is chosen by its score."""
    states = torch.tensor([[1.0, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 0, 1]])
    scores = torch.tensor([0.9, 1.0, 0.0, 0.1])
    assert chosen(states, scores, 2, 1.0) == [0, 1]
    assert chosen(states, scores, 2, 0.0) == [1, 3]  # the cosine of token 2 to token 1 is 0.1, that of token 3 is 0


def test_images_do_not_affect_each_other() -> None:
    noise = torch.Generator().manual_seed(0)
    states, scores = torch.randn(4, 9, 5, generator=noise), torch.rand(4, 9, generator=noise)
    sizes, counts = [9, 4, 1, 0], [3, 4, 1, 0]
    valid = torch.arange(9) < torch.tensor(sizes)[:, None]
    importance = unit_range(scores, valid)
    kept = maximal_marginal_relevance(self_similarity(states), importance, valid, torch.tensor(counts), 4, 0.5)
    for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        expected = literal(list(states[number, :size]), scores[number, :size].tolist(), count) if size else []
        assert kept[number].nonzero()[:, 0].tolist() == expected


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    states, scores = torch.empty(2, 9, 5, device="meta"), torch.empty(2, 9, device="meta")
    valid, quotas = torch.ones(2, 9, dtype=torch.bool, device="meta"), torch.ones(2, dtype=torch.long, device="meta")
    similarity, importance = self_similarity(states), unit_range(scores, valid)
    assert maximal_marginal_relevance(similarity, importance, valid, quotas, 4, 0.5).shape == (2, 9)


def method(tokens: int, before: int = 0, **fields: Any) -> dict[str, Any]:
    return {
        "layers": {"name": "fixed", "layers": [before]},
        "pruner": {"name": "mmr", "scorer": {"name": "vision_attention"}, **fields},
        "budget": {"name": "keep_count", "tokens": tokens},
    }


def expected(recording: Recording, name: str, tokens: int, layer: int, compare: str) -> list[list[int]]:
    saliency, tower = attention(recording, name, -2), features(recording, name, -1)
    by_sample = []
    for sample, images in enumerate(recording.image_positions):
        kept: list[int] = []
        for number, (image, count) in enumerate(zip(images, recording.quotas(sample, tokens), strict=True)):
            hidden = [recording.layer_inputs[layer][sample, position] for position in image]
            states = tower[sample][number] if compare == "tower" else hidden
            kept += [image[i] for i in literal(states, saliency[sample][number], count)]
        by_sample.append(sorted(kept))
    return by_sample


@pytest.mark.parametrize(("layer", "compare"), [(0, "hidden"), (0, "tower"), (2, "hidden")])
@pytest.mark.parametrize(
    ("name", "variant"),
    [("llava", "image"), ("llava", "multi"), ("llava", "ragged"), ("vipllava", "multi"), ("llava_qwen3", "ragged")],
)
def test_the_engine_keeps_what_the_definition_says(name: str, variant: Any, layer: int, compare: str) -> None:
    """Ragged batches, padded on the left, of prompts with several images."""
    recording = record(name, variant, batch=3)
    how = method(7, layer, compare=compare, layer=-1)
    assert recording.kept(how) == expected(recording, name, 7, layer, compare)


@pytest.mark.parametrize(
    ("scorer", "layer"),
    [("fastv", 2), ({"name": "matrix_entropy", "source": "hidden"}, 2), ("random", 0), ("instruction", 0)],
)
def test_any_scorer_can_be_the_importance(scorer: Any, layer: int) -> None:
    """With all the weight on it, its best tokens are kept, whatever they are like."""
    recording = record("llava", "multi", batch=3)
    ranked = {**method(7, layer), "pruner": {"name": "topk", "scorer": scorer}}
    assert recording.kept(method(7, layer, scorer=scorer, weight=1.0)) == recording.kept(ranked)


def test_a_layer_of_the_tower_is_read_only_if_it_is_compared() -> None:
    assert Mmr(scorer="random").vision_layers == frozenset()
    assert Mmr(scorer="random", compare="tower", layer=-3).vision_layers == {-3}
    assert Mmr(scorer=VisionAttention(layer=1)).vision_layers == {1}
    assert Mmr(scorer=VisionAttention(layer=1), compare="tower").vision_layers == {1, -2}


def test_named_defaults() -> None:
    """A quarter of the tokens, before the language model."""
    made = tp.load_method("mmr")
    assert made.pruner == Mmr(scorer=VisionAttention(layer=-2), weight=0.5, compare="hidden")
    assert made.layers.layers == (0,)  # type: ignore[attr-defined]
    assert made.budget.keep(576, Schedule((0,), 32)) == (144,)
