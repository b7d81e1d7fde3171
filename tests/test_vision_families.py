"""Towers whose patches are merged or pooled before the language model, against their own eager maps."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.tiny import CASES
from tests.tiny.core import Variant
from tests.tower import eager_maps, made_by
from tokenprune.context import PruneContext
from tokenprune.pruners.base import Selection
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.vision_attention import VisionAttention

QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"]


@dataclass
class Expected:
    """One entry per feature, in the order in which features enter the prompts."""

    attention: list[float]
    received: list[float]
    key: list[Tensor]


def merged(patches: list[list[int]], attention: Tensor, received: Tensor, key: Tensor) -> Expected:
    """Means over the patches of each token."""
    return Expected(
        [sum(float(attention[p]) for p in cell) / len(cell) for cell in patches],
        [sum(float(received[p]) for p in cell) / len(cell) for cell in patches],
        [torch.stack([key[p] for p in cell]).mean(0) for cell in patches],
    )


def window_index(tower: Any, grid: Tensor) -> list[int]:
    """The tower's own order of cells."""
    if hasattr(tower, "get_window_index"):
        return [int(i) for i in tower.get_window_index(grid)[0]]
    from transformers.vision_utils import get_vision_window_index

    return get_vision_window_index(grid, 2, tower.window_size, tower.patch_size)[0].tolist()


def qwen(model: Any, inputs: dict[str, Tensor], layer: int) -> Expected:
    """Four patches in a row are one token; a window's map says nothing of other windows."""
    tower = model.model.visual
    module = tower.blocks[layer].attn
    grid = inputs["image_grid_thw"] if "image_grid_thw" in inputs else inputs["video_grid_thw"]
    frames = [h * w for t, h, w in grid.tolist() for _ in range(t)]
    received = []
    for weights in eager_maps(model, module, inputs):
        received += weights[0].mean(0).sum(0).tolist()  # mean over heads, sum over queries
    shares = [1 / n for n in frames for _ in range(n)]
    assert len(received) == len(shares)
    column = torch.tensor([a * b for a, b in zip(received, shares, strict=True)])
    assert float(column.sum()) == pytest.approx(len(frames))  # one per frame or image
    key = made_by(model, module.qkv, inputs).unflatten(-1, (3, module.num_heads, -1))[:, 1].mean(1)
    order = window_index(tower, grid) if hasattr(tower, "fullatt_block_indexes") else range(len(shares) // 4)
    place = {cell: where for where, cell in enumerate(order)}
    patches = [[4 * place[cell] + i for i in range(4)] for cell in range(len(shares) // 4)]
    return merged(patches, column, column, key)


def squares(model: Any, inputs: dict[str, Tensor], layer: int) -> Expected:
    """Images of 4 x 4 or 8 x 8 patches, a class token in front or none; 16 tokens each."""
    tower = next(getattr(model.model, name) for name in ("vision_tower", "vision_model") if hasattr(model.model, name))
    layers: Any = getattr(tower.encoder, "layer", None) or tower.encoder.layers
    module = getattr(layers[layer], "attention", None) or layers[layer].self_attn
    (maps,) = eager_maps(model, module, inputs)
    source = made_by(model, getattr(module, "k_norm", module.k_proj), inputs)
    keys = source.unflatten(-1, (module.num_heads, -1)).mean(2)
    classes = maps.shape[-1] % 2
    side = int((maps.shape[-1] - classes) ** 0.5)
    step = side // 4
    whole = Expected([], [], [])
    for image, key in zip(maps.mean(1), keys, strict=True):
        patches = [
            [classes + (step * row + i) * side + step * column + j for i in range(step) for j in range(step)]
            for row, column in itertools.product(range(4), repeat=2)
        ]
        part = merged(patches, image[0] if classes else image.mean(0), image.mean(0), key)
        whole.attention += part.attention
        whole.received += part.received
        whole.key += part.key
    return whole


def pixtral(model: Any, inputs: dict[str, Tensor], layer: int) -> Expected:
    """All images in one map, which is zero between two of them."""
    tower = model.model.vision_tower
    module = tower.transformer.layers[layer].attention
    (maps,) = eager_maps(model, module, inputs)
    key = made_by(model, module.k_proj, inputs)[0].unflatten(-1, (module.num_heads, -1)).mean(1)
    patches, shares, before = [], [], 0
    for height, width in (inputs["image_sizes"] // 4).tolist():
        for row, column in itertools.product(range(height // 2), range(width // 2)):
            corner = before + 2 * row * width + 2 * column
            patches.append([corner, corner + 1, corner + width, corner + width + 1])
        shares += [1 / (height * width)] * (height * width)
        before += height * width
    column = maps[0].mean(0).sum(0) * torch.tensor(shares)
    return merged(patches, column, column, key)


LITERAL = {
    **dict.fromkeys(QWEN, qwen),
    **dict.fromkeys(["gemma3", "paligemma", "idefics3", "smolvlm", "internvl"], squares),
    "mistral3": pixtral,
}


class Looks(TopK):
    """Keeps what it has seen."""

    seen: Any = None

    def select(self, ctx: PruneContext, quotas: Tensor) -> Selection:
        found = ctx.vision(self.scorer.layer)  # type: ignore[attr-defined]
        type(self).seen = (found.attention, found.received, found.key)
        return super().select(ctx, quotas)


def method(layer: int, stage: int = 0, **budget: Any) -> tp.Method:
    return tp.Method(
        layers={"name": "fixed", "layers": [stage]},
        pruner=Looks(scorer=VisionAttention(layer=layer)),
        budget=budget or {"name": "keep_ratio", "ratio": 0.5},
    )


def compare(model: Any, ids: tuple[int, ...], inputs: dict[str, Tensor], layer: int, expected: Expected) -> None:
    """Values at every token, and what a budget keeps of every sample."""
    with torch.no_grad(), tp.apply(model, method(layer)) as run:
        model(**inputs)
    attention, received, key = Looks.seen
    done = 0
    for sample, row in enumerate(inputs["input_ids"]):
        visual = torch.isin(row, torch.tensor(ids)).nonzero()[:, 0].tolist()
        mine = slice(done, done + len(visual))
        done += len(visual)
        scale = max(expected.attention[mine])
        wanted = [value / scale for value in expected.attention[mine]]
        assert (attention[sample, : len(visual)] / scale).tolist() == pytest.approx(wanted, abs=2e-6)
        wanted = [value / scale for value in expected.received[mine]]
        assert (received[sample, : len(visual)] / scale).tolist() == pytest.approx(wanted, abs=2e-6)
        assert torch.allclose(key[sample, : len(visual)].double(), torch.stack(expected.key[mine]), atol=1e-5)
        assert not attention[sample, len(visual) :].any()
        kept = [int(p) for p in run.stages[0].kept[sample] if p >= 0]
        assert len(kept) == run.stages[0].after[sample] < run.stages[0].before[sample] == len(visual)
        score = dict(zip(visual, expected.attention[mine], strict=True))
        for part in image_runs(run, sample, visual):
            worst = min((score[p] for p in part if p in kept), default=2.0)
            best = max((score[p] for p in part if p not in kept), default=-1.0)
            assert worst >= best - 2e-6 * scale
    assert done == len(expected.attention)


def image_runs(run: Any, sample: int, visual: list[int]) -> list[list[int]]:
    """The tokens of each image."""
    sizes = GROUPS[sample]
    assert sum(sizes) == len(visual)
    edges = [0, *itertools.accumulate(sizes)]
    return [visual[start:end] for start, end in itertools.pairwise(edges)]


GROUPS: list[list[int]] = []


@pytest.mark.parametrize("variant", ["image", "multi", "ragged"])
@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("name", list(LITERAL))
def test_tokens_get_what_their_patches_get(name: str, layer: int, variant: Variant) -> None:
    case = CASES[name]
    if variant not in case.variants:
        pytest.skip("not a variant of this family")
    model = case.build("eager")
    batch = case.batch(model, 3, "left", variant=variant)
    GROUPS[:] = batch.groups
    compare(model, case.visual_ids, batch.inputs, layer, LITERAL[name](model, batch.inputs, layer))
