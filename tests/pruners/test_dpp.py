"""CDPruner without a text tower against a greedy choice by determinants in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.literal import Recording, cosine, exact_vectors, record
from tokenprune.budgets.base import Schedule
from tokenprune.ops.cosine import self_similarity
from tokenprune.ops.dpp import greedy_map, relevance_weights
from tokenprune.pruners.dpp import Dpp
from tokenprune.scorers.instruction import Instruction


def literal_weights(scores: list[float], theta: float | None) -> list[float]:
    low, high = min(scores), max(scores)
    scaled = [(score - low) / (high - low) if high > low else 0.0 for score in scores]
    if theta is None:
        return [share + 1e-6 for share in scaled]
    return [math.exp(theta / (2 * (1 - theta)) * share) for share in scaled]


def literal(kernel: Tensor, count: int) -> list[int]:
    """At every step the token that raises the determinant most, all determinants computed anew.

    Ties go to the smaller index; a factor of up to 1e-5 of the largest diagonal entry counts as none.
    """
    kernel = kernel.double()
    floor = 1e-5 * float(kernel.diagonal().max())
    kept: list[int] = []  # with a gain: the others would make every determinant vanish
    filling: list[int] = []
    while len(kept) + len(filling) < count:
        now = float(torch.linalg.det(kernel[kept][:, kept])) if kept else 1.0
        best, where = -1.0, -1
        for i in range(len(kernel)):
            if i in kept or i in filling:
                continue
            with_it = [*kept, i]
            gain = float(torch.linalg.det(kernel[with_it][:, with_it])) / now
            gain = gain if gain > floor else 0.0
            if gain > best + 1e-7:
                best, where = gain, i
        (kept if best > 0 else filling).append(where)
    return sorted(kept + filling)


def kernel_of(states: Tensor, weights: list[float]) -> Tensor:
    rows = [
        [weights[i] * cosine(states[i], states[j]) * weights[j] for j in range(len(states))] for i in range(len(states))
    ]
    return torch.tensor(rows, dtype=torch.float64)


def chosen(states: Tensor, scores: Tensor, count: int, theta: float | None = 0.5) -> list[int]:
    valid = torch.ones(1, len(states), dtype=torch.bool)
    weights = relevance_weights(scores[None], valid, theta)
    kernel = weights[:, :, None] * self_similarity(states[None]) * weights[:, None]
    return greedy_map(kernel, valid, torch.tensor([count]), count)[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("theta", [0.0, 0.5, 0.9, None])
@pytest.mark.parametrize("seed", range(3))
def test_random_tokens(seed: int, theta: float | None) -> None:
    noise = torch.Generator().manual_seed(seed)
    states, scores = torch.randn(14, 20, generator=noise), torch.randn(14, generator=noise)
    kernel = kernel_of(states, literal_weights(scores.tolist(), theta))
    for count in (1, 4, 9):
        assert chosen(states, scores, count, theta) == literal(kernel, count)


@pytest.mark.parametrize("distinct", [1, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_duplicates_and_ties_keep_the_earlier_position(seed: int, distinct: int) -> None:
    """Equal scores and few distinct vectors: the rank is soon used up."""
    states = exact_vectors(11, distinct, seed)
    kernel = kernel_of(states, [1.0] * 11)
    for count in (1, 2, 4, 8, 11):
        assert chosen(states, torch.zeros(11), count) == literal(kernel, count)


def test_more_tokens_than_dimensions() -> None:
    noise = torch.Generator().manual_seed(0)
    states, scores = torch.randn(12, 4, generator=noise), torch.randn(12, generator=noise)
    kernel = kernel_of(states, literal_weights(scores.tolist(), 0.5))
    assert chosen(states, scores, 4) == literal(kernel, 4)
    left = [i for i in range(12) if i not in chosen(states, scores, 4)]
    assert chosen(states, scores, 9) == sorted([*chosen(states, scores, 4), *left[:5]])
    assert chosen(states, scores, 12) == list(range(12))


def test_relevance_decides_between_equally_diverse_tokens() -> None:
    states = torch.eye(6)
    scores = torch.tensor([0.1, 0.9, 0.3, 0.8, 0.2, 0.7])
    assert chosen(states, scores, 3) == [1, 3, 5]
    assert chosen(states, scores, 3, theta=0.0) == [0, 1, 2]


def test_images_do_not_affect_each_other() -> None:
    noise = torch.Generator().manual_seed(0)
    states, scores = torch.randn(4, 9, 12, generator=noise), torch.randn(4, 9, generator=noise)
    sizes, counts = [9, 4, 1, 0], [3, 4, 1, 0]
    valid = torch.arange(9) < torch.tensor(sizes)[:, None]
    weights = relevance_weights(scores, valid, 0.5)
    kernel = weights[:, :, None] * self_similarity(states) * weights[:, None]
    kept = greedy_map(kernel, valid, torch.tensor(counts), 4)
    for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        assert kept[number].nonzero()[:, 0].tolist() == (
            chosen(states[number, :size], scores[number, :size], count) if size else []
        )


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    states, scores = torch.empty(2, 9, 5, device="meta"), torch.empty(2, 9, device="meta")
    valid, quotas = torch.ones(2, 9, dtype=torch.bool, device="meta"), torch.ones(2, dtype=torch.long, device="meta")
    weights = relevance_weights(scores, valid, 0.5)
    assert greedy_map(self_similarity(states) * weights[:, None], valid, quotas, 4).shape == (2, 9)


def method(tokens: int, layer: int = 0, **fields: Any) -> dict[str, Any]:
    return {
        "layers": {"name": "fixed", "layers": [layer]},
        "pruner": {"name": "dpp", "relevance": {"name": "instruction"}, **fields},
        "budget": {"name": "keep_count", "tokens": tokens},
    }


def relevance(recording: Recording, sample: int, image: list[int], layer: int) -> list[float]:
    """Cosine of each token to the average of all text tokens."""
    hidden = recording.layer_inputs[layer][sample]
    text = recording.text_positions[sample]
    average = sum(hidden[position] for position in text) / len(text)
    assert isinstance(average, Tensor)
    return [cosine(hidden[position], average) for position in image]


def expected(recording: Recording, tokens: int, layer: int, theta: float | None, sign: int = 1) -> list[list[int]]:
    kept_by_sample = []
    for sample, images in enumerate(recording.image_positions):
        kept: list[int] = []
        for image, count in zip(images, recording.quotas(sample, tokens), strict=True):
            weights = literal_weights([sign * score for score in relevance(recording, sample, image, layer)], theta)
            kernel = kernel_of(recording.layer_inputs[layer][sample, image], weights)
            kept += [image[i] for i in literal(kernel, count)]
        kept_by_sample.append(sorted(kept))
    return kept_by_sample


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize(
    ("name", "variant"), [("llava", "image"), ("llava", "multi"), ("llava_next", "ragged"), ("qwen2_5_vl", "multi")]
)
def test_the_engine_keeps_what_the_definition_says(name: str, variant: Any, layer: int) -> None:
    recording = record(name, variant, batch=3)
    assert recording.kept(method(7, layer)) == expected(recording, 7, layer, 0.5)


@pytest.mark.parametrize("theta", [0.0, 0.9, None])
def test_theta_and_sign(theta: float | None) -> None:
    recording = record("llava", "multi")
    assert recording.kept(method(9, theta=theta)) == expected(recording, 9, 0, theta)
    opposite = {"name": "instruction", "keep": "dissimilar"}
    assert recording.kept(method(9, theta=theta, relevance=opposite)) == expected(recording, 9, 0, theta, sign=-1)


def test_instruction_alone_ranks_by_similarity() -> None:
    recording = record("llava", "image")
    ranked = {**method(5), "pruner": {"name": "topk", "scorer": {"name": "instruction"}}}
    for sample, kept in enumerate(recording.kept(ranked)):
        image = recording.image_positions[sample][0]
        scores = dict(zip(image, relevance(recording, sample, image, 0), strict=True))
        assert kept == sorted(sorted(image, key=lambda position: -scores[position])[:5])


def test_any_scorer_can_be_the_relevance() -> None:
    """A text tower's relevance would be one more scorer: here it is given as an annotation."""
    recording = record("llava", "image")
    made = tp.Method.from_dict(method(4, relevance={"name": "annotation", "field": "relevance"}, theta=None))
    noise = torch.Generator().manual_seed(0)
    annotated = [torch.rand(16, generator=noise) for _ in range(2)]
    with torch.no_grad(), tp.apply(recording.model, made) as run:
        run.annotate(relevance=annotated)
        recording.model(**recording.inputs)
    for sample, row in enumerate(run.stages[0].kept.tolist()):
        image = recording.image_positions[sample][0]
        kernel = kernel_of(recording.layer_inputs[0][sample, image], literal_weights(annotated[sample].tolist(), None))
        assert row == [image[i] for i in literal(kernel, 4)]


def test_published_defaults() -> None:
    """128 of LLaVA-1.5's 576 tokens; OpenVINO's weight of relevance."""
    made = tp.load_method("cdpruner")
    assert made.pruner == Dpp(relevance=Instruction(keep="similar"), theta=0.5)
    assert made.layers.layers == (0,)  # type: ignore[attr-defined]
    assert made.budget.keep(576, Schedule((0,), 32)) == (128,)
