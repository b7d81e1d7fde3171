"""CLSE's score against a literal one: a Fourier transform summed term by term, and the whole attention map."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.ops.test_spectrum import literal as energy
from tests.scorers.test_priortr import attention_of, best
from tests.support.literal import Recording, record
from tests.support.tiny import CASES
from tokenprune.budgets.base import Schedule
from tokenprune.budgets.layer_average import layer_average
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.clse import Clse
from tokenprune.scorers.fastv import FastV
from tokenprune.testing import make_context

Frames = list[tuple[int, int]]
LAYER = 2


def evolution(
    before: Tensor, after: Tensor, frames: Frames, cutoff: float = 0.1, temperature: float = 0.1
) -> list[float]:
    """The factors of one image's tokens, states ``[tokens, dim]`` frame by frame."""
    energies: list[list[float]] = [[], []]
    for states, found in zip((before, after), energies, strict=True):
        start = 0
        for rows, columns in frames:
            frame = states[start : start + rows * columns].view(rows, columns, -1)
            found += chain.from_iterable(energy(frame, cutoff))
            start += rows * columns
    old, new = energies
    usual = sum(old) / len(old)
    intensity = [min(1.0, abs(b - a) / (usual + a + 1e-6)) for a, b in zip(old, new, strict=True)]
    mean = sum(intensity) / len(intensity)
    deviation = (sum((value - mean) ** 2 for value in intensity) / max(1, len(intensity) - 1)) ** 0.5
    return [1 / (1 + math.exp(-(value - mean) / (deviation + 1e-6) / temperature)) for value in intensity]


def frames_of(recording: Recording, name: str) -> list[list[Frames]]:
    """The grids of each image and video, by sample and image."""
    case, inputs = CASES[name], recording.inputs
    if not case.name.startswith("qwen"):
        return [[[(math.isqrt(len(image)),) * 2] for image in images] for images in recording.image_positions]  # type: ignore[misc]
    grids = [grid for key in ("image_grid_thw", "video_grid_thw") if key in inputs for grid in inputs[key].tolist()]
    numbers = iter([[(rows // 2, columns // 2)] * count for count, rows, columns in grids])
    return [[next(numbers) for _ in images] for images in recording.image_positions]


def method(layers: list[int], budget: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "layers": {"name": "fixed", "layers": layers},
        "pruner": {"name": "topk", "scorer": {"name": "clse", **fields}},
        "budget": budget,
    }


@pytest.mark.parametrize("fields", [{}, {"cutoff": 0.6, "temperature": 1.0}])
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize(
    ("name", "variant"),
    [("llava", "image"), ("llava", "ragged"), ("qwen2_5_vl", "ragged"), ("qwen2_5_vl", "video"), ("qwen2_vl", "multi")],
)
def test_the_engine_keeps_what_the_definition_says(name: str, variant: Any, padding: Any, fields: Any) -> None:
    """Batches of prompts with images of several sizes, and videos, whose frames are filtered one by one."""
    recording = record(name, variant, padding, batch=3)
    weights, grids = attention_of(recording), frames_of(recording, name)
    expected = []
    for sample, images in enumerate(recording.image_positions):
        last = int(recording.inputs["attention_mask"][sample].nonzero().max())
        kept: list[int] = []
        for image, frames, count in zip(images, grids[sample], recording.quotas(sample, 7), strict=True):
            before, after = (recording.layer_inputs[layer][sample, image] for layer in (0, LAYER))
            factors = evolution(before, after, frames, **fields)
            row = weights[sample, :, last].mean(0)
            kept += best({p: float(row[p]) * factor for p, factor in zip(image, factors, strict=True)}, count)
        expected.append(sorted(kept))
    assert recording.kept(method([LAYER], {"name": "keep_count", "tokens": 7}, **fields)) == expected


def context(images: list[Frames], seed: int, keep: list[int], off: int = 0, dim: int = 3) -> tuple[Any, list[slice]]:
    """One sample with images of some grids, each followed by ``off`` tokens without coordinates, and some text."""
    noise = torch.Generator().manual_seed(seed)
    grid, numbers, parts = [[-1] * 3] * 2, [-1] * 2, []
    for number, frames in enumerate(images):
        start = len(grid)
        for frame, (rows, columns) in enumerate(frames):
            grid += [[frame, row, column] for row in range(rows) for column in range(columns)]
        parts.append(slice(start, len(grid)))
        grid += [[-1] * 3] * off
        numbers += [number] * (len(grid) - start)
    grid, numbers = grid + [[-1] * 3] * 2, numbers + [-1] * 2
    rows = len(grid)
    image = torch.tensor([numbers])
    hidden, embeddings = (torch.randn(1, rows, dim, generator=noise) for _ in range(2))
    query, key = (torch.randn(1, rows, 2, 4, generator=noise) for _ in range(2))
    made = make_context(
        hidden, image >= 0, images=image.clamp(min=0), keep=[keep], query=query, key=key, embeddings=embeddings,
        grid=torch.tensor([grid]),
    )  # fmt: skip
    return made, parts


@pytest.mark.parametrize("seed", range(3))
def test_several_images_and_tokens_off_the_grid(seed: int) -> None:
    """Each image has its own z-scores; a newline has a factor of one half and changes no other token's."""
    images: list[Frames] = [[(4, 4)], [(3, 5), (3, 5)], [(1, 1)], [(2, 2), (5, 3)]]
    for off in (0, 2):
        ctx, parts = context(images, seed, [1, 9, 1, 3], off)
        factors = torch.full((1, ctx.hidden_rows.shape[1]), 0.5)
        for part, frames in zip(parts, images, strict=True):
            embeddings = ctx.prompt.embeddings[0, part].double()
            factors[0, part] = torch.tensor(evolution(embeddings, ctx.hidden_rows[0, part].double(), frames))
        expected = factors.gather(1, ctx.visual_rows)
        torch.testing.assert_close(Clse().evolution(ctx), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(Clse().checked(ctx), expected * FastV().score(ctx), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("keep", [1, 5, 15, 16])
def test_equal_scores_keep_the_earlier_position(keep: int) -> None:
    """No change and equal attention: all scores are equal."""
    hidden, states = torch.ones(1, 20, 4), torch.zeros(1, 20, 1, 4)
    visual = torch.arange(20)[None] < 16
    grid = torch.full((1, 20, 3), -1)
    grid[:, :16] = torch.cartesian_prod(torch.zeros(1).long(), torch.arange(4), torch.arange(4))
    ctx = make_context(hidden, visual, keep=keep, query=states, key=states, embeddings=hidden, grid=grid)
    assert Clse().evolution(ctx).unique().tolist() == [0.5]
    assert TopK(scorer=Clse()).select(ctx).keep[0].nonzero()[:, 0].tolist() == list(range(keep))


@pytest.mark.parametrize("variant", ["image", "ragged"])
@torch.no_grad()
def test_behind_an_earlier_stage_the_score_is_the_attention(variant: Any) -> None:
    """As in the published code: the grid has holes. An image that lost nothing still has its spectrum."""
    recording = record("llava", variant, batch=3)
    budget = {"name": "keep_schedule", "ratios": [0.6, 0.3]}
    runs = []
    for second in ({"name": "clse"}, {"name": "fastv"}):
        data = method([1, 3], budget)
        scorers = ({"name": "clse"}, second)
        data["pruner"] = {"name": "stages", "pruners": [{"name": "topk", "scorer": scorer} for scorer in scorers]}
        with tp.apply(recording.model, tp.Method.from_dict(data)) as run:
            recording.model(**recording.inputs)
        runs.append([stage.kept.tolist() for stage in run.stages])
    assert runs[0] == runs[1]


@torch.no_grad()
def test_a_first_stage_that_drops_nothing_leaves_the_grid_whole() -> None:
    recording = record("llava", "image", batch=2)
    kept = recording.kept(method([3], {"name": "keep_count", "tokens": 5}))
    data = method([1, 3], {"name": "keep_schedule", "tokens": [16, 5]})
    with tp.apply(recording.model, tp.Method.from_dict(data)) as run:
        recording.model(**recording.inputs)
    assert run.stages[1].kept.tolist() == kept


def test_published_schedules_and_their_layer_averages() -> None:
    """What the authors call 192, 128 and 64 tokens."""
    made = tp.load_method("clse", model="LLaVA-1.5-7B")
    assert made.pruner == tp.load_method("clse").pruner == TopK(scorer=Clse(cutoff=0.1, temperature=0.1))
    schedule = Schedule((1, 11, 21), 32)
    counts = ((330, 210, 62), (220, 140, 41), (110, 70, 20))
    assert [round(layer_average(576, count, schedule)) for count in counts] == [208, 145, 81]
    assert made.budget.keep(576, schedule) == counts[0]
