"""OTPrune against a greedy choice by determinants in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.literal import exact_vectors, record
from tokenprune.budgets.base import Schedule
from tokenprune.ops.dpp import alignment_kernel, greedy_map
from tokenprune.pruners.otprune import OTPrune


def literal_kernel(states: Tensor, gamma: float) -> Tensor:
    """Sums term by term."""
    rows = states.tolist()
    count, dim = range(len(rows)), range(len(rows[0]))
    norms = [sum(row[c] ** 2 for row in rows) ** 0.5 for c in dim]
    scaled = [[row[c] / norms[c] if norms[c] > 0 else 0.0 for c in dim] for row in rows]
    gram = [[sum(scaled[i][c] * scaled[j][c] for c in dim) for j in count] for i in count]
    kernel = [[float(i == j) + gamma * sum(gram[i][k] * gram[j][k] for k in count) for j in count] for i in count]
    return torch.tensor(kernel, dtype=torch.float64)


def literal(states: Tensor, count: int, gamma: float = 0.01) -> list[int]:
    """At every step the token that raises the determinant most, all determinants anew; ties go to the smaller index."""
    kernel = literal_kernel(states, gamma)
    kept: list[int] = []
    while len(kept) < count:
        best, where = 0.0, -1
        for i in range(len(kernel)):
            with_it = [*kept, i]
            gain = float(torch.linalg.det(kernel[with_it][:, with_it])) if i not in kept else 0.0
            if gain > best * (1 + 1e-7):
                best, where = gain, i
        kept.append(where)
    return sorted(kept)


def chosen(states: Tensor, count: int, gamma: float = 0.01) -> list[int]:
    valid = torch.ones(1, len(states), dtype=torch.bool)
    kernel = alignment_kernel(states[None], valid, gamma)
    return greedy_map(kernel, valid, torch.tensor([count]), count, negligible=0.0)[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize("gamma", [0.01, 1.0])
@pytest.mark.parametrize("dim", [4, 20])
@pytest.mark.parametrize("seed", range(3))
def test_random_tokens(seed: int, dim: int, gamma: float) -> None:
    """Also fewer channels than tokens to keep: the unit matrix gives the kernel its rank."""
    noise = torch.Generator().manual_seed(seed)
    states = torch.randn(14, dim, generator=noise) * (0.5 + 3 * torch.rand(14, 1, generator=noise))
    torch.testing.assert_close(
        alignment_kernel(states[None], torch.ones(1, 14, dtype=torch.bool), gamma)[0].double(),
        literal_kernel(states, gamma),
        rtol=1e-5,
        atol=1e-6,
    )
    for count in (1, 4, 9, 14):
        assert chosen(states, count, gamma) == literal(states, count, gamma)


@pytest.mark.parametrize("distinct", [1, 2])
def test_duplicates_keep_the_earlier_position(distinct: int) -> None:
    """Entries of +-1, and 16 tokens: channels are divided by 4, and nothing is rounded."""
    states = exact_vectors(16, distinct, seed=0)
    for count in (1, 2, 5, 16):
        assert chosen(states, count, 0.25) == literal(states, count, 0.25)


def test_a_large_token_does_not_make_the_gains_of_others_nothing() -> None:
    """Its entry of the kernel is 10^6 times that of the others, whose gains are above 1 all the same."""
    noise = torch.Generator().manual_seed(0)
    states = torch.randn(10, 2000, generator=noise)
    states[4] *= 300
    assert chosen(states, 5, 10.0) == literal(states, 5, 10.0) != [0, 1, 2, 3, 4]


def test_a_channel_of_zeros_does_not_count() -> None:
    states = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    wider = torch.cat([states, torch.zeros(9, 2)], 1)
    assert chosen(wider, 4) == chosen(states, 4) == literal(wider, 4)


def test_images_do_not_affect_each_other() -> None:
    """Channels are divided by their norms over the image's own tokens, without padding."""
    states = torch.randn(4, 9, 12, generator=torch.Generator().manual_seed(0))
    sizes, counts = [9, 4, 1, 0], [3, 4, 1, 0]
    valid = torch.arange(9) < torch.tensor(sizes)[:, None]
    kept = greedy_map(alignment_kernel(states, valid, 0.01), valid, torch.tensor(counts), 4, negligible=0.0)
    for number, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        expected = literal(states[number, :size], count) if size else []
        assert kept[number].nonzero()[:, 0].tolist() == expected


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    states = torch.empty(2, 9, 5, device="meta")
    valid, quotas = torch.ones(2, 9, dtype=torch.bool, device="meta"), torch.ones(2, dtype=torch.long, device="meta")
    assert greedy_map(alignment_kernel(states, valid, 0.01), valid, quotas, 4, negligible=0.0).shape == (2, 9)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize(
    ("name", "variant"), [("llava", "image"), ("llava", "multi"), ("llava_next", "ragged"), ("qwen2_5_vl", "multi")]
)
def test_the_engine_keeps_what_the_definition_says(name: str, variant: Any, layer: int) -> None:
    """Ragged batches, padded on the left, of prompts with several images."""
    recording = record(name, variant, batch=3)

    def choose(sample: int, number: int, count: int) -> list[int]:
        return literal(recording.layer_inputs[layer][sample, recording.image_positions[sample][number]], count)

    expected = recording.image_by_image(7, choose)
    method = {
        "layers": {"name": "fixed", "layers": [layer]},
        "pruner": {"name": "otprune"},
        "budget": {"name": "keep_count", "tokens": 7},
    }
    assert recording.kept(method) == expected


def test_published_defaults() -> None:
    """56 of LLaVA-1.5's 576 tokens, before the language model."""
    made = tp.load_method("otprune")
    assert made.pruner == OTPrune() == OTPrune(gamma=0.01)
    assert made.layers.layers == (0,)  # type: ignore[attr-defined]
    assert made.budget.keep(576, Schedule((0,), 32)) == (56,)
