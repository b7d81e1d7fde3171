"""Quotas per tile: on models whose tower sees an image in tiles, each tile is pruned as if it were an image."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.tiny import CASES
from tests.support.tiny.core import pad
from tests.support.tiny.qwen import IMAGE
from tokenprune.errors import UnsupportedFeatureError
from tokenprune.pruners.base import Pruner, Selection
from tokenprune.pruners.hiprune import HiPrune
from tokenprune.pruners.prunesid import PruneSID
from tokenprune.pruners.scope import Scope
from tokenprune.pruners.visionzip import VisionZip
from tokenprune.pruners.vispruner import VisPruner
from tokenprune.signals.context import PruneContext
from tokenprune.testing import TowerTensors, make_context

PRUNERS = {
    "scope": Scope(layer=-1),
    "hiprune": HiPrune(object_layer=0, deep_layer=-1, alpha=0.5),
    "visionzip": VisionZip(layer=-1),
    "prunesid": PruneSID(layer=-1, tokens_per_group=2),
    "vispruner": VisPruner(layer=-1, per_round=1),
}


def context(seed: int, tokens: int, keep: int, tiles: Tensor | None, rows: Tensor, columns: Tensor) -> PruneContext:
    noise = torch.Generator().manual_seed(seed)
    states, attention, other = (torch.randn(1, tokens, n, generator=noise) for n in (6, 1, 1))
    tower = {
        number: TowerTensors(
            values.softmax(1)[..., 0],
            values.softmax(1)[..., 0],
            states,
            states,
            None,
            None if tiles is None else [tiles],
        )
        for number, values in ((-1, attention), (0, other))
    }
    grid = torch.stack([torch.ones_like(rows), rows, columns], -1)[None]
    return make_context(states, keep=keep, tower=tower, grid=grid, layer=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", list(PRUNERS))
def test_every_tile_is_pruned_by_itself(name: str, seed: int) -> None:
    """Four tiles of 4 x 4 patches, whose rows alternate in the prompt: the same as each tile alone with its share."""
    row, column = (values.flatten() for values in torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij"))
    tiles = row // 4 * 2 + column // 4
    whole = context(seed, 64, 20, tiles, row, column)
    selection = PRUNERS[name].select(whole)
    kept = selection.keep[0]
    for tile in range(4):
        index = (tiles == tile).nonzero()[:, 0]
        alone = context(seed, 64, 20, None, row, column)
        part = cut(alone, index, 5)
        assert kept[index].tolist() == PRUNERS[name].select(part).keep[0].tolist()
    image = type(PRUNERS[name])(**{**PRUNERS[name].model_dump(), "per": "image"}).select(whole).keep[0]
    assert int(image.sum()) == int(kept.sum()) == 20
    assert not torch.equal(image, kept)


def cut(ctx: PruneContext, index: Tensor, keep: int) -> PruneContext:
    """The context of some of the tokens alone."""
    tower = {}
    for number in (-1, 0):
        shown = ctx.vision(number)
        tower[number] = TowerTensors(
            shown.attention[:, index], shown.received[:, index], shown.key[:, index], shown.features[:, index]
        )
    return make_context(ctx.hidden[:, index], keep=keep, tower=tower, grid=ctx.grid.coordinates[:, index], layer=0)


@functools.cache
def built(name: str) -> Any:
    return CASES[name].build("eager")


def of_sizes(model: Any, sizes: list[list[int]]) -> dict[str, Tensor]:
    """A prompt for each image of so many pixels (height and width)."""
    pixels = torch.randn(len(sizes), 5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    values = {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}
    with torch.no_grad():
        made = model.model.get_image_features(**values, return_dict=True).pooler_output
    return {**pad([[3] * (1 + i) + [IMAGE] * len(part) + [4] for i, part in enumerate(made)], "left"), **values}


class Looks(Scope):
    """Keeps the layout that it saw."""

    seen: Any = None

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"grid"}

    def select(self, ctx: PruneContext) -> Selection:
        type(self).seen = (ctx.regions("tile", self.layer), ctx.grid.coordinates)
        return super().select(ctx)


def apply(model: Any, pruner: Pruner, inputs: dict[str, Tensor], layers: tuple[int, ...] = (0,), **call: Any) -> Any:
    budget = {"name": "keep_schedule", "ratios": [0.4, 0.2][: len(layers)]}
    method = tp.Method(layers={"name": "fixed", "layers": layers}, pruner=pruner, budget=budget)
    with torch.no_grad(), tp.apply(model, method) as run:
        model.generate(**inputs, max_new_tokens=1, **call) if call else model(**inputs)
    return run


@pytest.mark.parametrize("call", [{}, {"num_beams": 2}])
@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_tiles_of_a_model_that_cuts_images(name: str, call: dict[str, Any]) -> None:
    """An overview of 4 x 4 patches, then tiles of 4 x 4 without the padding; a separator ends each row."""
    model = built(name)
    inputs = of_sizes(model, [[64, 64], [40, 64], [64, 40]])
    run = apply(model, Looks(layer=-1), inputs, **call)
    layout, grid = Looks.seen
    beams = call.get("num_beams", 1)
    # 64 x 64 fills two by two tiles; 40 x 64 leaves 5 of 8 rows (6 here), cut evenly above and below
    assert layout.host_sizes[0] == [16, 16, 20, 16, 20]
    for sample, sizes in enumerate(layout.host_sizes):
        pixels = inputs["image_sizes"][sample // beams].tolist()
        rows, columns = (int(grid[sample, :, axis].max()) + 1 for axis in (1, 2))
        above, left = (8 - rows) // 2, (8 - columns) // 2
        expected: list[int] = []
        for frame, row, column in grid[sample].tolist():
            if frame < 0:
                expected.append(expected[-1] if expected else -1)
            else:
                expected.append(0 if frame == 0 else 1 + (row + above) // 4 * 2 + (column + left) // 4)
        real = (layout.groups[sample] >= 0).nonzero()[:, 0].tolist()
        assert [layout.groups[sample, i].item() for i in real] == [expected[i] for i in real], pixels
        assert sum(sizes) == len(real)
        kept = run.stages[0].after[sample]
        assert sum(layout.host_quotas[sample]) == kept
        patches = [sum(1 for i in real if expected[i] == t and grid[sample, i, 0] >= 0) for t in range(5)]
        for quota, count in zip(layout.host_quotas[sample], patches, strict=True):
            assert abs(quota - kept * count / sum(patches)) < 1


@torch.no_grad()
def test_towers_that_get_whole_images_have_one_tile_each() -> None:
    model = CASES["qwen2_5_vl"].build("eager")
    inputs = CASES["qwen2_5_vl"].batch(model, 2, "left", variant="multi").inputs
    apply(model, Looks(layer=-1), inputs)
    layout, _ = Looks.seen
    assert layout.host_sizes == [
        list(map(int, row)) for row in CASES["qwen2_5_vl"].batch(model, 2, "left", variant="multi").groups
    ]


def test_tiles_behind_an_earlier_stage_are_refused() -> None:
    model = built("llava_next")
    inputs = of_sizes(model, [[64, 64]])
    with pytest.raises(UnsupportedFeatureError, match=r"before any token is dropped.*per: image"):
        apply(model, Scope(layer=-1), inputs, layers=(0, 2))
    run = apply(model, Scope(layer=-1, per="image"), inputs, layers=(0, 2))
    assert run.stages[1].after[0] < run.stages[0].after[0]
