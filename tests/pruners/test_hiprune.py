"""HiPrune against a literal choice of anchors, buffers and registers in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokenprune as tp
from tests.support.literal import record
from tests.support.tower import attention
from tokenprune.budgets.base import Schedule
from tokenprune.ops.topk import best_by_tier
from tokenprune.ops.vision import TowerLayer
from tokenprune.ops.windows import anchors_and_neighbours
from tokenprune.pruners.hiprune import HiPrune


def ranked(tokens: list[int], scores: list[float]) -> list[int]:
    return sorted(tokens, key=lambda i: (-scores[i], i))


def literal(middle: list[float], deep: list[float], width: int, count: int, alpha: float = 0.1) -> list[int]:
    """Indices that are kept of an image with rows of ``width`` tokens."""
    anchors = ranked(list(range(len(middle))), middle)[: round(count * alpha / 5)]
    buffers = set()
    for anchor in anchors:
        row, column = divmod(anchor, width)
        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            if 0 <= c < width and r >= 0 and r * width + c < len(middle):
                buffers.add(r * width + c)
    kept = [*anchors, *ranked(sorted(buffers - set(anchors)), middle)][:count]
    registers = ranked([i for i in range(len(middle)) if i not in kept], deep)
    return sorted([*kept, *registers[: count - len(kept)]])


def published(middle: torch.Tensor, deep: torch.Tensor, width: int, count: int, alpha: float) -> list[int]:
    """How the paper's code states it: flat neighbours, and what is taken has 1 subtracted before the second top-k."""
    top = middle.topk(round(count * alpha / 5)).indices
    around = torch.cat([top, top - 1, top + 1, top - width, top + width]).clamp(0, len(middle) - 1).unique()
    rest = deep.clone()
    rest[around] -= 1
    return sorted([*around.tolist(), *rest.topk(count - len(around)).indices.tolist()])


def grid_of(sizes: list[int], width: int) -> torch.Tensor:
    """A grid per image, padded with -1 to the largest."""
    grid = torch.full((len(sizes), max(sizes), 3), -1)
    for number, size in enumerate(sizes):
        for token in range(size):
            grid[number, token] = torch.tensor([0, *divmod(token, width)])
    return grid


def chosen(middle: torch.Tensor, deep: torch.Tensor, grid: torch.Tensor, quotas: list[int], alpha: float) -> Any:
    counts = [round(quota * alpha / 5) for quota in quotas]
    valid = grid[..., 0] >= 0
    tiers = anchors_and_neighbours(middle, grid, valid, torch.tensor(counts), max(counts))
    keep = best_by_tier(tiers, torch.where(tiers > 0, middle, deep), torch.tensor(quotas))
    return [row.nonzero()[:, 0].tolist() for row in keep]


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_random_images(seed: int, alpha: float) -> None:
    """Three images of different sizes at once; with alpha 1 buffers are cut to the quota."""
    noise = torch.Generator().manual_seed(seed)
    sizes = [48, 20, 6]
    middle, deep = torch.rand(3, 48, generator=noise), torch.rand(3, 48, generator=noise)
    for quotas in ([30, 12, 3], [48, 20, 6], [5, 8, 1], [13, 3, 0]):
        expected = [
            literal(middle[i, :size].tolist(), deep[i, :size].tolist(), 4, quota, alpha)
            for i, (size, quota) in enumerate(zip(sizes, quotas, strict=True))
        ]
        assert chosen(middle, deep, grid_of(sizes, 4), quotas, alpha) == expected


@pytest.mark.parametrize("seed", range(4))
def test_the_published_code_where_anchors_are_not_at_the_edge(seed: int) -> None:
    """24 x 24, 192 of 576 tokens: four anchors."""
    noise = torch.Generator().manual_seed(seed)
    middle, deep = torch.rand(576, generator=noise), torch.rand(576, generator=noise)
    edge = torch.tensor([min(divmod(i, 24)) == 0 or max(divmod(i, 24)) == 23 for i in range(576)])
    middle = (middle * (~edge)) / 576
    deep = deep / 576
    expected = published(middle, deep, 24, 192, 0.1)
    assert len(expected) == 192
    assert chosen(middle[None], deep[None], grid_of([576], 24), [192], 0.1) == [expected]
    assert literal(middle.tolist(), deep.tolist(), 24, 192) == expected


def test_ties_keep_the_earlier_position() -> None:
    same = torch.ones(1, 16)
    for quota in (1, 3, 10, 16):
        expected = literal([1.0] * 16, [1.0] * 16, 4, quota, 0.5)
        assert chosen(same, same, grid_of([16], 4), [quota], 0.5) == [expected]


def test_a_corner_has_two_neighbours_and_other_frames_have_none() -> None:
    scores = torch.tensor([[0.0, 0, 0, 1, 0, 0, 0, 0]])
    grid = torch.tensor([[[f, r, c] for f in range(2) for r in range(2) for c in range(2)]])
    valid = torch.ones(1, 8, dtype=torch.bool)
    tiers = anchors_and_neighbours(scores, grid, valid, torch.tensor([1]), 1)
    assert tiers.tolist() == [[0, 1, 1, 2, 0, 0, 0, 0]]
    grid[0, 1] = -1  # a separator touches nothing, and nothing touches it
    assert anchors_and_neighbours(scores, grid, valid, torch.tensor([1]), 1).tolist() == [[0, 0, 1, 2, 0, 0, 0, 0]]
    assert anchors_and_neighbours(scores.roll(-2), grid, valid, torch.tensor([1]), 1).tolist()[0][:3] == [0, 2, 0]


def test_attention_from_everyone() -> None:
    """Column mean of softmax(q k^T) over all rows, the class token's among them, without its column."""
    noise = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 9, 2, 4, generator=noise) for _ in range(2))
    expected = [0.0] * 8
    for head in range(2):
        for row in range(9):
            logits = [0.5 * float(query[0, row, head] @ key[0, other, head]) for other in range(9)]
            weights = torch.tensor(logits, dtype=torch.float64).softmax(0).tolist()
            for patch in range(8):
                expected[patch] += weights[patch + 1] / 18
    layer = TowerLayer(query, key, 1, 0.5)
    assert layer.received[0].tolist() == pytest.approx(expected, abs=1e-6)
    bare = TowerLayer(query, key, 0, 0.5)
    assert torch.equal(bare.received, bare.attention)


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    scores = torch.empty(2, 9, device="meta")
    grid = torch.empty(2, 9, 3, dtype=torch.long, device="meta")
    valid, counts = torch.ones(2, 9, dtype=torch.bool, device="meta"), torch.ones(2, dtype=torch.long, device="meta")
    tiers = anchors_and_neighbours(scores, grid, valid, counts, 2)
    assert best_by_tier(tiers, scores, counts).shape == (2, 9)


def method(tokens: int, **fields: Any) -> dict[str, Any]:
    return {
        "layers": {"name": "fixed", "layers": [0]},
        "pruner": {"name": "hiprune", **fields},
        "budget": {"name": "keep_count", "tokens": tokens},
    }


@pytest.mark.parametrize(
    ("name", "variant"),
    [("llava", "image"), ("llava", "multi"), ("llava", "ragged"), ("vipllava", "multi"), ("llava_qwen3", "ragged")],
)
@pytest.mark.parametrize(("tokens", "alpha"), [(7, 0.5), (9, 1.0), (14, 0.1)])
def test_the_engine_keeps_what_the_definition_says(name: str, variant: Any, tokens: int, alpha: float) -> None:
    """Ragged batches, padded on the left, of prompts with several images of 4 x 4 tokens; a tower of two layers."""
    recording = record(name, variant, batch=3)
    middle, deep = (attention(recording, name, layer, everyone=True) for layer in (0, -1))
    expected = []
    for sample, images in enumerate(recording.image_positions):
        kept: list[int] = []
        for number, (image, count) in enumerate(zip(images, recording.quotas(sample, tokens), strict=True)):
            kept += [image[i] for i in literal(middle[sample][number], deep[sample][number], 4, count, alpha)]
        expected.append(sorted(kept))
    assert recording.kept(method(tokens, alpha=alpha, object_layer=0, deep_layer=-1)) == expected


def test_a_layer_that_the_tower_lacks_is_refused() -> None:
    made = tp.load_method("hiprune")
    with (
        pytest.raises(tp.errors.LayerError, match="layer 8 of a vision tower of 2 layers"),
        tp.apply(record("llava").model, made),
    ):
        pass


def test_published_defaults() -> None:
    """192 of LLaVA-1.5's 576 tokens, before the language model; the ninth layer of the tower."""
    made = tp.load_method("hiprune")
    assert made.pruner == HiPrune() == HiPrune(alpha=0.1, object_layer=8, deep_layer=-2)
    assert made.layers.layers == (0,)  # type: ignore[attr-defined]
    assert made.budget.keep(576, Schedule((0,), 32)) == (192,)
