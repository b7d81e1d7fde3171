"""HoloV against a literal choice, crop by crop and token by token, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.literal import cosine, exact_vectors, record
from tests.support.tower import attention
from tokenprune.budgets.base import Schedule
from tokenprune.ops.cosine import self_similarity
from tokenprune.ops.crops import Crops, allocate, similarity_variance
from tokenprune.pruners.holov import HoloV
from tokenprune.testing import TowerTensors, make_context


def cut(size: int, crops: int) -> list[list[int]]:
    """Runs of successive tokens, the first ones longer by one where that is needed; empty ones left out."""
    runs, start = [], 0
    for crop in range(crops):
        length = size // crops + (1 if crop < size % crops else 0)
        runs.append(list(range(start, start + length)))
        start += length
    return [run for run in runs if run]


def crop_weight(states: list[Tensor], saliency: list[float], beta: float) -> float:
    """The mean of the tokens' scores, each of attention and scaled variance."""
    count = len(states)
    if count == 1:
        return saliency[0]
    variances = []
    for i in range(count):
        row = [cosine(states[i], states[j]) if i != j else 0.0 for j in range(count)]
        mean = sum(row) / (count - 1)
        variances.append(sum((value - mean) ** 2 for value in row) / (count - 1))
    scaling = (sum(saliency) / count) / (sum(variances) / count + 1e-6)
    scores = [a + beta * scaling * v for a, v in zip(saliency, variances, strict=True)]
    return sum(scores) / count


def shared(total: int, weights: list[float], room: list[int]) -> list[int]:
    """Rounded down, the remainder to the largest weights; what does not fit goes to those that have room."""
    counts = [0] * len(room)
    while sum(counts) < total:
        left = total - sum(counts)
        some = [i for i in range(len(room)) if counts[i] < room[i]]
        total_weight = sum(weights[i] for i in some)
        share = {i: math.floor(left * weights[i] / total_weight + 1e-9) for i in some}
        for i in sorted(some, key=lambda i: (-weights[i], i))[: left - sum(share.values())]:
            share[i] += 1
        for i in some:
            counts[i] = min(counts[i] + share[i], room[i])
    return counts


def literal(
    states: list[Tensor], saliency: list[float], count: int, crops: int = 16, beta: float = 0.09, power: float = 1.0
) -> list[int]:
    runs = cut(len(states), crops)
    weights = [crop_weight([states[i] for i in run], [saliency[i] for i in run], beta) ** power for run in runs]
    kept = []
    for run, number in zip(runs, shared(count, weights, [len(run) for run in runs]), strict=True):
        kept += sorted(run, key=lambda i: (-saliency[i], i))[:number]
    return sorted(kept)


def chosen(states: Tensor, saliency: Tensor, sizes: list[int], quotas: list[int], **fields: Any) -> list[list[int]]:
    """The pruner on bare tensors: every sample is one image."""
    real = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    tower = {-2: TowerTensors(attention=saliency, received=saliency, key=states, features=states)}
    ctx = make_context(states, real, keep=[[quota] for quota in quotas], tower=tower)
    keep = HoloV(**fields).select(ctx).keep
    return [row.nonzero()[:, 0].tolist() for row in keep]


@pytest.mark.parametrize("fields", [{}, {"beta": 2.0}, {"power": 3.0}, {"crops": 5, "beta": 0.5}])
@pytest.mark.parametrize("seed", range(4))
def test_random_images(seed: int, fields: dict[str, Any]) -> None:
    """Of different sizes at once: one is smaller than the number of crops, one no multiple of it."""
    noise = torch.Generator().manual_seed(seed)
    sizes = [96, 50, 11, 1]
    states = torch.randn(4, 96, 6, generator=noise)
    saliency = (3 * torch.randn(4, 96, generator=noise)).softmax(1)
    for quotas in ([20, 7, 3, 1], [1, 1, 1, 1], [70, 41, 9, 1], [96, 50, 11, 1]):
        expected = [
            literal(list(states[i, :size]), saliency[i, :size].double().tolist(), quota, **fields)
            for i, (size, quota) in enumerate(zip(sizes, quotas, strict=True))
        ]
        assert [len(row) for row in expected] == quotas
        assert chosen(states, saliency, sizes, quotas, **fields) == expected


@pytest.mark.parametrize("seed", range(4))
def test_duplicates_and_ties_keep_the_earlier_position(seed: int) -> None:
    """Equal attention or two values of it; equal variances or no part in the weights."""
    for distinct, size, beta in ((2, 40, 0.0), (1, 48, 0.09)):
        states = exact_vectors(size, distinct, seed)
        for saliency in (torch.full((size,), 1 / 64), exact_vectors(size, size, seed)[:, 0] / 128 + 1 / 64):
            for count in (1, 5, 16, 31, 40):
                expected = literal(list(states), saliency.tolist(), count, beta=beta)
                assert chosen(states[None], saliency[None], [size], [count], beta=beta) == [expected]


def test_all_attention_in_one_crop() -> None:
    """It is kept whole; what it cannot hold goes to the others, down to weights of nothing."""
    saliency = torch.zeros(32)
    saliency[8:12] = 0.25
    states = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    assert chosen(states[None], saliency[None], [32], [7], crops=8) == [[0, 4, 8, 9, 10, 11, 12]]
    saliency[20] = 1e-3
    assert chosen(states[None], saliency[None], [32], [7], crops=8) == [[8, 9, 10, 11, 20, 21, 22]]


@pytest.mark.parametrize("seed", range(20))
def test_shares(seed: int) -> None:
    """Exact sums within the room, whatever the weights; no weight at all is as good as equal weights."""
    noise = torch.Generator().manual_seed(seed)
    room = torch.randint(0, 9, (6, 16), generator=noise)
    weights = torch.rand(6, 16, generator=noise) ** (1 + 2 * (seed % 3))
    weights[0] = 0
    total = (room.sum(1) * torch.rand(6, generator=noise)).long()
    total[1] = room[1].sum()
    quotas = allocate(total, weights, room)
    assert torch.equal(quotas.sum(1), total)
    assert ((quotas >= 0) & (quotas <= room)).all()
    for row in range(1, 6):
        assert quotas[row].tolist() == shared(int(total[row]), weights[row].double().tolist(), room[row].tolist())


@pytest.mark.parametrize("size", [5, 37, 576])
def test_one_round_more_than_crops_can_be_filled(size: int) -> None:
    """With all weight in few crops, which is the worst case, these rounds divide the count as all rounds do."""
    room = Crops(torch.full((16,), size), size, 16).sizes
    weights = torch.rand(16, 16, generator=torch.Generator().manual_seed(size)) ** torch.arange(16)[:, None] ** 2
    for total in range(1, size + 1, max(1, size // 20)):
        rounds = min(total // max(1, size // 16) + 1, 16)
        whole = torch.full((16,), total)
        assert torch.equal(allocate(whole, weights, room, rounds), allocate(whole, weights, room))


def test_crops_come_back() -> None:
    sizes = torch.tensor([37, 16, 5, 0])
    crops = Crops(sizes, 37, 16)
    numbers = torch.arange(37).expand(4, -1)
    split = crops.split(numbers)
    for row, size in enumerate(sizes.tolist()):
        runs = [crop[real].tolist() for crop, real in zip(split[row], crops.valid[row], strict=True)]
        assert [run for run in runs if run] == cut(size, 16)
        assert crops.join(crops.valid)[row].tolist() == [i < size for i in range(37)]


def test_variances() -> None:
    """Of four tokens one is padding; a lone token has none."""
    states = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[True, True, True, False], [True, False, False, False]])
    variance = similarity_variance(self_similarity(states), valid)
    for i in range(3):
        row = [cosine(states[0, i], states[0, j]) if j != i else 0.0 for j in range(3)]
        mean = sum(row) / 2
        assert float(variance[0, i]) == pytest.approx(sum((value - mean) ** 2 for value in row) / 2, abs=1e-6)
    assert variance[0, 3] == 0
    assert not variance[1].any()


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    crops = Crops(torch.empty(2, dtype=torch.long, device="meta"), 37, 16)
    weights = torch.empty(2, 16, device="meta")
    quotas = allocate(torch.empty(2, dtype=torch.long, device="meta"), weights, crops.sizes)
    assert quotas.shape == (2, 16)
    states = crops.split(torch.empty(2, 37, 5, device="meta"))
    assert similarity_variance(self_similarity(states), crops.valid).shape == (2, 16, 3)
    assert crops.join(crops.valid).shape == (2, 37)


@pytest.mark.parametrize(
    ("name", "variant"),
    [("llava", "image"), ("llava", "multi"), ("llava", "ragged"), ("vipllava", "multi"), ("llava_qwen3", "ragged")],
)
@pytest.mark.parametrize(("crops", "layer"), [(4, -2), (5, -1), (16, -2)])
def test_the_engine_keeps_what_the_definition_says(name: str, variant: Any, crops: int, layer: int) -> None:
    """Ragged batches, padded on the left, of prompts with several images of 16 tokens."""
    recording = record(name, variant, batch=3)
    saliency = attention(recording, name, layer)
    expected = []
    for sample, images in enumerate(recording.image_positions):
        kept: list[int] = []
        for image, count, weight in zip(images, recording.quotas(sample, 7), saliency[sample], strict=True):
            states = [recording.layer_inputs[0][sample, position] for position in image]
            kept += [image[i] for i in literal(states, weight, count, crops=crops)]
        expected.append(sorted(kept))
    method = {
        "layers": {"name": "fixed", "layers": [0]},
        "pruner": {"name": "holov", "crops": crops, "layer": layer},
        "budget": {"name": "keep_count", "tokens": 7},
    }
    assert recording.kept(method) == expected


def test_published_defaults() -> None:
    """64 of LLaVA-1.5's 576 tokens, before the language model."""
    made = tp.load_method("holov")
    assert made.pruner == HoloV() == HoloV(crops=16, beta=0.09, power=1.0, layer=-2)
    assert made.layers.layers == (0,)  # type: ignore[attr-defined]
    assert made.budget.keep(576, Schedule((0,), 32)) == (64,)
