"""VisPruner against a literal thinning out of lists in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.literal import cosine, exact_vectors, record
from tests.support.tower import attention, features
from tokenprune.budgets.base import Schedule
from tokenprune.ops.bipartite import drop_duplicates, rounds_needed
from tokenprune.pruners.vispruner import VisPruner
from tokenprune.testing import TowerTensors, make_context


def thinned(states: list[Tensor], listed: list[int], target: int, most: int) -> list[int]:
    """What is left of a list of tokens."""
    while len(listed) > target:
        first, second = listed[0::2], listed[1::2]
        scores = {}
        for i in first:
            likeness = [cosine(states[i], states[j]) for j in second]
            scores[i] = max([1.0 if x > 1 - 1e-6 else x for x in likeness], default=-2.0)
        first.sort(key=lambda i: -scores[i])  # stable: the earlier in the list comes first
        listed = first[min(most, len(listed) - target, len(first)) :] + second
    return listed


def literal(states: list[Tensor], weights: list[float], count: int, important: float = 0.5, most: int = 8) -> list[int]:
    """Numbers of the kept tokens of an image."""
    order = sorted(range(len(states)), key=lambda i: (-weights[i], i))
    few = int(count * important)
    return sorted([*order[:few], *thinned(states, order[few:], count - few, most)])


def published(states: Tensor, weights: Tensor, count: int) -> list[int]:
    """How the paper's code states it, for lists of even length: scores of half the list against the other half."""
    unit = torch.nn.functional.normalize(states.double(), dim=1)
    order = weights.argsort(descending=True)
    kept, rest = order[: count // 2], order[count // 2 :]
    while (drop := min(8, len(rest) - (count - count // 2))) > 0:
        a, b = rest[::2], rest[1::2]
        best = (unit[a] @ unit[b].T).max(1).values
        rest = torch.cat([a[best.argsort(descending=True)[drop:]], b])
    return sorted([*kept.tolist(), *rest.tolist()])


def chosen(states: Tensor, weights: Tensor, sizes: list[int], counts: list[int], most: int) -> list[list[int]]:
    """The tensor function on lists by falling weight."""
    real = torch.arange(states.shape[1]) < torch.tensor(sizes)[:, None]
    order = weights.masked_fill(~real, -1.0).argsort(dim=1, descending=True, stable=True)
    rounds = rounds_needed(zip(sizes, counts, strict=True), lambda length, target: most, odd_in_first=True)
    kept = drop_duplicates(states, order, torch.tensor(sizes), torch.tensor(counts), most, rounds)
    return [row.nonzero()[:, 0].tolist() for row in kept]


@pytest.mark.parametrize("kind", ["random", "duplicates", "clusters", "same"])
@pytest.mark.parametrize("most", [1, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_lists_of_different_lengths(seed: int, most: int, kind: str) -> None:
    """Even and odd ones; few exact vectors are full of equal scores."""
    noise = torch.Generator().manual_seed(seed)
    sizes = [30, 21, 8, 1]
    if kind in ("random", "clusters"):
        states = torch.randn(4, 30, 6, generator=noise)
        if kind == "clusters":
            states = 0.05 * states + torch.randn(5, 6, generator=noise)[torch.randint(0, 5, (4, 30), generator=noise)]
    else:
        states = exact_vectors(120, 1 if kind == "same" else 6, seed).view(4, 30, 16)
    weights = torch.randint(0, 10, (4, 30), generator=noise).float()
    for counts in ([12, 5, 3, 1], [29, 21, 1, 0], [1, 0, 7, 1]):
        expected = []
        for row, (size, count) in enumerate(zip(sizes, counts, strict=True)):
            order = sorted(range(size), key=lambda i: (-weights[row, i].item(), i))
            expected.append(sorted(thinned(list(states[row]), order, count, most)))
        assert chosen(states, weights, sizes, counts, most) == expected


@pytest.mark.parametrize("count", [64, 128, 192])
def test_the_published_code_on_576_tokens(count: int) -> None:
    noise = torch.Generator().manual_seed(count)
    states, weights = torch.randn(576, 16, generator=noise), torch.rand(576, generator=noise)
    order = weights.argsort(descending=True)[None]
    half = count // 2
    rounds = rounds_needed([(576 - half, half)], lambda length, target: 8, odd_in_first=True)
    sizes, targets = torch.tensor([576 - half]), torch.tensor([half])
    rest = drop_duplicates(states[None], order.roll(-half, 1), sizes, targets, 8, rounds)[0].nonzero()[:, 0]
    assert sorted([*order[0, :half].tolist(), *rest.tolist()]) == published(states, weights, count)
    assert rounds == -(-(576 - count) // 8)


def test_near_duplicates_go() -> None:
    """Of 20 tokens, 10 of them one patch of sky: sky goes, as long as both sets have some of it."""
    noise = torch.Generator().manual_seed(1)
    states = torch.linalg.qr(torch.randn(20, 20, generator=noise)).Q
    states[::2] = states[0] + 0.001 * torch.randn(10, 20, generator=noise)
    kept = chosen(states[None], torch.rand(1, 20, generator=noise), [20], [12], 1)[0]
    assert [i for i in kept if i % 2] == list(range(1, 20, 2))


@pytest.mark.parametrize("seed", range(3))
def test_rounding_decides_nothing_between_duplicates(seed: int) -> None:
    """Copies of vectors whose cosine to themselves is not exactly 1: the first eight with a copy in B go."""
    noise = torch.Generator().manual_seed(seed)
    states = torch.randn(3, 50, generator=noise)[torch.randint(0, 3, (40,), generator=noise)]
    weights = torch.arange(40, 0, -1).float()
    expected = [i for i in range(40) if i % 2 or i >= 16]
    assert chosen(states[None], weights[None], [40], [32], 8) == [expected]


def test_separators_are_duplicates_of_each_other() -> None:
    """A LLaVA-NeXT's row separators have neither attention nor features; as zero vectors they would all be distinct."""
    noise = torch.Generator().manual_seed(0)
    features, weights = torch.randn(1, 24, 8, generator=noise), torch.rand(1, 24, generator=noise)
    separators = torch.arange(24) % 3 == 2
    features[:, separators], weights[:, separators] = 0, 0
    tower = {-2: TowerTensors(weights, weights, features, features)}
    kept = VisPruner(per_round=2).select(make_context(torch.ones(1, 24, 2), keep=16, tower=tower)).keep[0]
    assert int((kept & separators).sum()) <= 2
    stand_ins = features.masked_fill(separators[:, None], 1.0)
    assert kept.nonzero()[:, 0].tolist() == literal(list(stand_ins[0]), weights[0].tolist(), 16, most=2)


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    states, order = torch.empty(2, 9, 5, device="meta"), torch.empty(2, 9, dtype=torch.long, device="meta")
    counts = torch.ones(2, dtype=torch.long, device="meta")
    assert drop_duplicates(states, order, counts, counts, 8, 3).shape == (2, 9)


def method(tokens: int, **fields: Any) -> dict[str, Any]:
    return {
        "layers": {"name": "fixed", "layers": [0]},
        "pruner": {"name": "vispruner", **fields},
        "budget": {"name": "keep_count", "tokens": tokens},
    }


@pytest.mark.parametrize(
    ("name", "variant"),
    [("llava", "image"), ("llava", "multi"), ("llava", "ragged"), ("vipllava", "multi"), ("llava_qwen3", "ragged")],
)
@pytest.mark.parametrize(
    ("tokens", "important", "most", "layer", "compare"),
    [
        (7, 0.5, 8, -2, "tower"),
        (9, 0.0, 2, -1, "tower"),
        (11, 0.7, 1, -2, "tower"),
        (11, 0.7, 1, -2, "projected"),
        (5, 1.0, 8, -1, "tower"),
    ],
)
def test_the_engine_keeps_what_the_definition_says(
    name: str, variant: Any, tokens: int, important: float, most: int, layer: int, compare: str
) -> None:
    """Ragged batches, padded on the left, of prompts with several images."""
    recording = record(name, variant, batch=3)
    weights, tower = attention(recording, name, layer), features(recording, name, layer)
    expected = []
    for sample, images in enumerate(recording.image_positions):
        kept: list[int] = []
        for number, (image, count) in enumerate(zip(images, recording.quotas(sample, tokens), strict=True)):
            projected = [recording.layer_inputs[0][sample, position] for position in image]
            states = tower[sample][number] if compare == "tower" else projected
            kept += [image[i] for i in literal(states, weights[sample][number], count, important, most)]
        expected.append(sorted(kept))
    made = method(tokens, important=important, per_round=most, layer=layer, compare=compare)
    assert recording.kept(made) == expected


def test_published_defaults() -> None:
    """64 of LLaVA-1.5's 576 tokens before the language model, half of them important."""
    made = tp.load_method("vispruner")
    assert made.pruner == VisPruner() == VisPruner(important=0.5, per_round=8, layer=-2, compare="tower")
    assert made.layers.layers == (0,)  # type: ignore[attr-defined]
    assert made.budget.keep(576, Schedule((0,), 32)) == (64,)
