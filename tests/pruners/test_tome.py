"""ToMe against a literal merging, token by token, in float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.pruners.test_visionzip import pruned_states, tower_keys
from tests.support.literal import cosine, exact_vectors, record
from tokenprune.budgets.base import Schedule
from tokenprune.ops.bipartite import mean_of_clusters, plan_rounds, soft_matching
from tokenprune.pruners.tome import ToMe


@dataclass
class Token:
    """One entry of the list that is merged."""

    place: int
    key: Tensor
    feature: Tensor
    size: int = 1

    def absorb(self, other: Token) -> None:
        total = self.size + other.size
        self.key = (self.key * self.size + other.key * other.size) / total
        self.feature = (self.feature * self.size + other.feature * other.size) / total
        self.size = total


def likeness(one: Token, other: Token) -> float:
    similarity = cosine(one.key, other.key)
    return 1.0 if similarity > 1 - 1e-6 else similarity


def literal(keys: Tensor, states: Tensor, count: int, steps: int) -> dict[int, Tensor]:
    """Kept tokens and their features; None in front of the list is the class token, which has no edge."""
    tokens: list[Token | None] = [None]
    tokens += [Token(i, keys[i].double(), states[i].double()) for i in range(len(keys))]
    r = -(-(len(keys) - count) // steps)
    while len(tokens) - 1 > count:
        first, second = tokens[0::2], [token for token in tokens[1::2] if token is not None]
        edges: list[tuple[float, Token, Token]] = []
        for a in first:
            if a is not None:
                scores = [likeness(a, b) for b in second]
                edges.append((max(scores), a, second[scores.index(max(scores))]))
        edges.sort(key=lambda edge: -edge[0])
        gone = []
        for _, a, b in edges[: min(r, len(tokens) - 1 - count)]:
            gone.append(a)
            b.absorb(a)
        tokens = [*(a for a in first if not any(a is other for other in gone)), *second]
    return {token.place: token.feature for token in tokens if token is not None}


def merged(
    keys: Tensor, states: Tensor, sizes: list[int], counts: list[int], steps: int
) -> tuple[list[list[int]], Tensor]:
    valid = torch.arange(keys.shape[1]) < torch.tensor(sizes)[:, None]
    rounds = plan_rounds(zip(sizes, counts, strict=True), lambda length, target: -(-(length - target) // steps))
    owner = soft_matching(keys, rounds)
    keep = (owner == torch.arange(keys.shape[1])) & valid
    return [row.nonzero()[:, 0].tolist() for row in keep], mean_of_clusters(states, owner, keep, valid, max(counts))


def agree(keys: Tensor, states: Tensor, sizes: list[int], counts: list[int], steps: int) -> None:
    kept, means = merged(keys, states, sizes, counts, steps)
    for row, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        expected = literal(keys[row, :size], states[row, :size], count, steps)
        assert kept[row] == sorted(expected)
        for place, feature in expected.items():
            assert torch.allclose(means[row, place].double(), feature, atol=1e-5)


@pytest.mark.parametrize("clusters", [False, True])
@pytest.mark.parametrize("steps", [1, 3, 24])
@pytest.mark.parametrize("seed", range(3))
def test_images_of_different_sizes(seed: int, steps: int, clusters: bool) -> None:
    """With one step where half the tokens are too few for it: further steps follow."""
    noise = torch.Generator().manual_seed(seed)
    keys, states = torch.randn(4, 30, 6, generator=noise), torch.randn(4, 30, 5, generator=noise)
    if clusters:
        keys = 0.05 * keys + torch.randn(5, 6, generator=noise)[torch.randint(0, 5, (4, 30), generator=noise)]
    for counts in ([12, 5, 3, 1], [29, 21, 1, 1], [1, 1, 7, 1], [16, 11, 4, 1]):
        agree(keys, states, [30, 21, 8, 1], counts, steps)


@pytest.mark.parametrize("distinct", [1, 4, 100])
@pytest.mark.parametrize("seed", range(4))
def test_ties_take_the_earlier(seed: int, distinct: int) -> None:
    """Cosines of +-1 vectors are exact: edges are equal, and tokens equally like several."""
    keys = exact_vectors(60, distinct, seed).view(2, 30, 16)
    states = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(seed))
    for counts in ([15, 20], [29, 16], [24, 30]):
        agree(keys, states, [30, 30], counts, 1)
    if distinct == 1:  # clusters of equal keys, over several steps
        agree(keys, states, [30, 23], [7, 1], 5)


def test_duplicates_join_the_earliest() -> None:
    """Sixteen pairs of four kinds, one step: each second token of a pair joins the first pair of its kind."""
    kinds = torch.arange(32) // 2 % 4
    kept, means = merged(torch.eye(4)[kinds][None], torch.arange(32.0)[None, :, None], [32], [16], 1)
    assert kept == [list(range(0, 32, 2))]
    first = [(place + sum(place + 1 + 8 * turn for turn in range(4))) / 5 for place in range(0, 8, 2)]
    assert means[0, ::2, 0].tolist() == pytest.approx([*first, *range(8, 32, 2)])


def test_steps_of_a_vit_l() -> None:
    """576 tokens to 64: 22 in each of 23 steps, and the last 6."""
    rounds = plan_rounds([(576, 64)], lambda length, target: -(-(length - target) // 24))
    assert rounds == [[(576 - 22 * number, 22)] for number in range(23)] + [[(70, 6)]]
    assert plan_rounds([(8, 1)], lambda length, target: -(-(length - target) // 1)) == [[(8, 4)], [(4, 2)], [(2, 1)]]


def test_a_short_list_waits_for_a_long_one() -> None:
    waiting = [[(9, 3), (5, 0)], [(6, 3), (5, 0)], [(3, 1), (5, 0)]]
    assert plan_rounds([(9, 2), (5, 5)], lambda length, target: 3) == waiting
    assert plan_rounds([(5, 5)], lambda length, target: 3) == []


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    keys = torch.empty(2, 9, 5, device="meta")
    owner = soft_matching(keys, plan_rounds([(9, 2), (7, 1)], lambda length, target: 3))
    valid = torch.ones(2, 9, dtype=torch.bool, device="meta")
    assert mean_of_clusters(keys, owner, valid, valid, 4).shape == keys.shape


def method(tokens: int, **fields: Any) -> dict[str, Any]:
    return {
        "layers": {"name": "fixed", "layers": [0]},
        "pruner": {"name": "tome", **fields},
        "budget": {"name": "keep_count", "tokens": tokens},
    }


@pytest.mark.parametrize(
    ("name", "variant"),
    [("llava", "image"), ("llava", "multi"), ("llava", "ragged"), ("vipllava", "multi"), ("llava_qwen3", "ragged")],
)
@pytest.mark.parametrize(("tokens", "steps", "layer"), [(7, 24, -2), (9, 2, -1), (3, 4, -2)])
def test_the_engine_merges_as_the_definition_says(name: str, variant: Any, tokens: int, steps: int, layer: int) -> None:
    """Kept tokens and their states, of ragged batches padded on the left, of prompts with several images."""
    recording = record(name, variant, batch=3)
    keys = tower_keys(recording, name, layer)
    how = method(tokens, steps=steps, layer=layer)
    rows, entered = pruned_states(recording, how)
    kept = recording.kept(how)
    for sample, images in enumerate(recording.image_positions):
        expected: dict[int, Tensor] = {}
        for number, (image, count) in enumerate(zip(images, recording.quotas(sample, tokens), strict=True)):
            survivors = literal(
                torch.stack(keys[sample][number]), recording.layer_inputs[0][sample, image], count, steps
            )
            expected |= {image[i]: feature for i, feature in survivors.items()}
        assert kept[sample] == sorted(expected)
        expected |= {row: recording.layer_inputs[0][sample, row] for row in recording.text_positions[sample]}
        states = {row: state for row, state in zip(rows[sample], entered[sample], strict=True) if row in expected}
        assert states.keys() == expected.keys()
        assert all(torch.allclose(states[row], expected[row], atol=1e-5) for row in expected)


def test_published_defaults() -> None:
    """64 of LLaVA-1.5's 576 tokens; one step per layer of its ViT-L."""
    made = tp.load_method("tome")
    assert made.pruner == ToMe() == ToMe(steps=24, layer=-2)
    assert made.layers.layers == (0,)  # type: ignore[attr-defined]
    assert made.budget.keep(576, Schedule((0,), 32)) == (64,)
