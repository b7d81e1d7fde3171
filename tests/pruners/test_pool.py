"""A pool limits any pruner to the best tokens of each image, against literal selections."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.pruners.test_max_min import literal
from tests.support.literal import Recording, record
from tokenprune.errors import ConfigError, LayerError
from tokenprune.pruners.base import Pruner
from tokenprune.pruners.dpp import Dpp
from tokenprune.pruners.evs import Evs
from tokenprune.pruners.max_min import MaxMin
from tokenprune.pruners.pool import Pool
from tokenprune.pruners.scope import Scope
from tokenprune.pruners.sparsevlm import SparseVLM
from tokenprune.pruners.stages import Stages
from tokenprune.pruners.topk import TopK
from tokenprune.pruners.visionzip import VisionZip
from tokenprune.scorers.fastv import FastV
from tokenprune.scorers.matrix_entropy import MatrixEntropy
from tokenprune.scorers.norm import Norm
from tokenprune.scorers.random import Random
from tokenprune.scorers.vision_attention import VisionAttention
from tokenprune.testing import TowerTensors, make_context

SMALL = Norm(source="hidden", keep="small")


def method(pruner: Pruner, tokens: int, layer: int = 2) -> dict[str, Any]:
    return {
        "layers": {"name": "fixed", "layers": [layer]},
        "pruner": pruner,
        "budget": {"name": "keep_count", "tokens": tokens},
    }


def expected(recording: Recording, tokens: int, layer: int, factor: float) -> list[list[int]]:
    """The smallest norms of each image, then literal max-min among these."""
    kept_by_sample = []
    for sample, images in enumerate(recording.image_positions):
        kept: list[int] = []
        for image, quota in zip(images, recording.quotas(sample, tokens), strict=True):
            states = [recording.layer_inputs[layer][sample, position] for position in image]
            order = sorted(range(len(image)), key=lambda i: (float(states[i].norm()), i))
            pool = order[: min(len(image), int(factor * quota + 1e-9))]
            kept += [image[i] for i in literal(states, quota, pool)]
        kept_by_sample.append(sorted(kept))
    return kept_by_sample


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0, 4.0])
@pytest.mark.parametrize(
    ("name", "variant"),
    [("llava", "image"), ("llava", "multi"), ("llava", "ragged"), ("llava_next", "ragged"), ("qwen2_5_vl", "multi")],
)
def test_the_engine_keeps_what_the_definition_says(name: str, variant: Any, factor: float) -> None:
    recording = record(name, variant, batch=3)
    pool = Pool(scorer=SMALL, pruner=MaxMin(), factor=factor)
    assert recording.kept(method(pool, 7)) == expected(recording, 7, 2, factor)


@pytest.mark.parametrize("variant", ["image", "multi", "ragged"])
@pytest.mark.parametrize(
    "pruner", [Dpp(relevance=FastV()), Scope(per="image"), VisionZip(per="image"), SparseVLM(), TopK(scorer=Random())]
)
def test_a_pool_of_everything_changes_nothing(variant: Any, pruner: Pruner) -> None:
    recording = record("llava", variant, batch=3)
    whole = Pool(scorer=SMALL, pruner=pruner, factor=100)
    assert recording.kept(method(whole, 6)) == recording.kept(method(pruner, 6))
    narrow = Pool(scorer=SMALL, pruner=pruner, factor=1)
    assert recording.kept(method(narrow, 6)) == recording.kept(method(TopK(scorer=SMALL), 6))


def context(hidden: Tensor, keep: int, needs: frozenset[str], rows: list[int] | None = None) -> Any:
    """Random signals of some visual tokens; with ``rows``, of these alone."""
    noise = torch.Generator().manual_seed(3)
    batch, count = hidden.shape[:2]
    rows = list(range(count)) if rows is None else rows

    def tensor(*shape: int) -> Tensor:
        return torch.rand(batch, count, *shape, generator=noise)[:, rows]

    tower = TowerTensors(tensor(), tensor(), key=tensor(4) - 0.5, features=tensor(6) - 0.5)
    return make_context(hidden[:, rows], keep=keep, tower={-2: tower}, needs=needs)


@pytest.mark.parametrize("pruner", [Scope(), VisionZip(contextual=0.5), Dpp(relevance=VisionAttention()), MaxMin()])
def test_the_pool_is_what_is_left_when_the_others_are_dropped(pruner: Pruner) -> None:
    """The same pruner on a context that never had the other tokens keeps and makes the same."""
    hidden = torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(0))
    in_pool = sorted(hidden[0].norm(dim=-1).argsort()[:8].tolist())
    pool = Pool(scorer=SMALL, pruner=pruner, factor=2)
    chosen = pool.select(context(hidden, 4, pool.needs))
    alone = pruner.select(context(hidden, 4, pruner.needs, in_pool))
    kept = [in_pool[place] for place in alone.keep[0].nonzero()[:, 0].tolist()]
    assert chosen.keep[0].nonzero()[:, 0].tolist() == kept
    assert (alone.hidden is None) == (chosen.hidden is None)
    if alone.hidden is not None and chosen.hidden is not None:
        torch.testing.assert_close(chosen.hidden[0, kept], alone.hidden[0, alone.keep[0]])


def test_a_restricted_context_is_one_that_never_had_the_others() -> None:
    """Every signal of the visual tokens is that of the picked tokens; text is what it was."""
    noise = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 9, 8, generator=noise)
    visual = torch.tensor([[0, 1, 1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0, 0]]).bool()
    images = torch.tensor([[0, 0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0]])
    grid = torch.full((2, 9, 3), -1)
    grid[0, 1:6] = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1]])
    grid[1, 1:4] = torch.tensor([[0, 0, 0], [0, 0, 1], [0, 0, 2]])
    scores = torch.arange(18.0).view(2, 9)
    ctx = make_context(
        hidden, visual, keep=[[2, 1], [1]], images=images, grid=grid, key=hidden[:, :, None], annotations={"s": scores}
    )
    picked = torch.tensor([[1, 0, 1, 0, 1], [0, 0, 1, 0, 0]]).bool()
    small, index = ctx.among(picked, [[2, 1], [1]])
    assert small.visual_mask.tolist() == [[True, True, True], [True, False, False]]
    assert index[0].tolist() == [0, 2, 4]
    assert index[1, 0] == 2
    assert len(set(index[1].tolist())) == 3
    assert small.visual_rows.tolist() == [[1, 3, 5], [3, 0, 0]]
    assert small.positions.tolist() == [[1, 3, 5], [3, 0, 0]]
    assert small.groups.tolist() == [[0, 0, 1], [0, -1, -1]]
    assert small.quotas.tolist() == ctx.quotas.tolist()
    assert small.text_mask.tolist() == ctx.text_mask.tolist()
    assert small.last_row.tolist() == [8, 8]
    assert small.hidden[0].equal(hidden[0, [1, 3, 5]])
    assert small.key[0, :, 0].equal(hidden[0, [1, 3, 5]])
    assert small.grid.coordinates.tolist() == [[[0, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 0, 2], [-1] * 3, [-1] * 3]]
    assert small.grid.frames.tolist() == [[0, 0, 1], [0, -1, -1]]
    assert small.annotation("s").tolist() == [[1, 3, 5], [12, 0, 0]]


def test_merged_states_of_the_pool_come_back_to_their_places() -> None:
    """Other tokens keep their states, and nothing of them is merged."""
    hidden = torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(5))
    pool = Pool(scorer=SMALL, pruner=VisionZip(contextual=0.5), factor=2)
    chosen = pool.select(context(hidden, 3, pool.needs))
    assert chosen.hidden is not None
    outside = hidden.norm(dim=-1).argsort(1)[0, 6:]
    assert not chosen.keep[0, outside].any()
    assert chosen.hidden[0, outside].equal(hidden[0, outside])
    assert not chosen.hidden[0].equal(hidden[0]), "nothing was merged: the test shows nothing"


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    hidden = torch.empty(2, 9, 5, device="meta")
    visual = torch.empty(2, 9, dtype=torch.bool, device="meta")
    ctx = make_context(hidden, visual, keep=[[3], [2]], sizes=[[7], [8]])
    assert Pool(scorer=SMALL, pruner=MaxMin()).select(ctx).keep.shape == (2, 8)


def test_needs_and_tower_layers_are_those_of_both() -> None:
    pool = Pool(scorer=MatrixEntropy(), pruner=Scope(layer=-3))
    assert pool.needs == {"query", "hidden"}
    assert pool.vision_layers == {-3}
    with pytest.raises(LayerError, match="Pool reads query of the layer before layer 0"):
        record("llava").kept(method(pool, 5, layer=0))


@pytest.mark.parametrize("pruner", [Evs(), Stages(pruners=(MaxMin(),))])
def test_pruners_without_a_quota_of_each_image_are_refused(pruner: Pruner) -> None:
    with pytest.raises(ConfigError, match="has no quota of its own for each image"):
        Pool(scorer=SMALL, pruner=pruner)


def test_the_factor_is_at_least_one() -> None:
    with pytest.raises(ConfigError, match="factor: Input should be greater than or equal to 1"):
        Pool(scorer=SMALL, pruner=MaxMin(), factor=0.5)


def test_with_max_min_it_is_max_mins_own_pool() -> None:
    recording = record("llava", "multi")
    own = MaxMin(pool=VisionAttention(layer=0), pool_factor=3)
    ours = Pool(scorer=VisionAttention(layer=0), pruner=MaxMin(), factor=3)
    assert recording.kept(method(ours, 5, layer=0)) == recording.kept(method(own, 5, layer=0))
    assert tp.Method.from_dict(method(ours, 5)).pruner == ours
