"""Placements against the functions that processors and models use themselves, and calls without their pixels."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.llava_next.modeling_llava_next import unpad_image

from tests.adapters.test_adapters import call_of_generate
from tests.support.tiny import CASES, CORE
from tests.support.tiny.core import CACHE, Variant
from tokenprune.adapters import adapter_for
from tokenprune.adapters.image_video import small_arguments
from tokenprune.adapters.placements import (
    AnyResolution,
    Frames,
    OverviewAndJoinedTiles,
    TilesAndThumbnail,
    Whole,
    best_resolution,
    covered_by_patches,
)
from tokenprune.adapters.views import WHOLE, PlacedItem, View, part_of
from tokenprune.errors import SampleError

GRIDDED = [*CORE, "qwen3_vl_moe", "vipllava", "lighton_ocr"]
RESOLUTIONS = tuple((336 * rows, 336 * columns) for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)))
MANY = tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7))


def sizes(count: int, most: int = 1500) -> list[tuple[int, int]]:
    """Random widths and heights."""
    chance = random.Random(5)
    return [(chance.randint(20, most), chance.randint(20, most)) for _ in range(count)]


# ---- calls without their pixels ---


def variants(name: str) -> list[Variant]:
    return [variant for variant in CASES[name].variants if variant != "text"]


def same(one: list[list[PlacedItem]] | None, other: list[list[PlacedItem]] | None) -> bool:
    """Whether two answers of `placed` tell the same."""
    assert one is not None
    assert other is not None
    for left, right in zip(one, other, strict=True):
        for a, b in zip(left, right, strict=True):
            assert (a.modality, a.placement, a.positions.tolist()) == (b.modality, b.placement, b.positions.tolist())
            assert (a.coordinates is None) == (b.coordinates is None)
            if a.coordinates is not None:
                assert a.coordinates.tolist() == b.coordinates.tolist()  # type: ignore[union-attr]
    return True


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in lists, mappings and objects."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    elif hasattr(value, "__dict__"):
        value = list(vars(value).values())
    return [tensor for part in value for tensor in tensors_of(part)] if isinstance(value, list | tuple) else []


@pytest.mark.parametrize("how", ["forward", "generate", "beams", "embeddings"])
@pytest.mark.parametrize("name", GRIDDED)
def test_a_call_without_pixels_tells_the_same(name: str, how: str) -> None:
    case = CASES[name]
    model = case.build()
    adapter = adapter_for(model)
    for variant in variants(name):
        call: dict[str, Any] = dict(case.batch(model, 3, "left", variant=variant).inputs)
        if how in ("generate", "beams"):
            call = call_of_generate(model, call, 2 if how == "beams" else 1)
        if how == "embeddings":
            call["inputs_embeds"] = model.get_input_embeddings()(call.pop("input_ids")).detach()
        layout = adapter.locate(call)
        assert layout is not None
        small = adapter.without_pixels(call)
        assert same(adapter.placed(call, layout), adapter.placed(small, layout))
        kept = [tensor for tensor in tensors_of(small) if tensor.device.type != "meta"]
        assert kept
        assert not any(tensor.is_floating_point() for tensor in kept)
        assert (
            max(tensor.numel() for tensor in kept) <= 4 * layout.mask.numel()
        )  # Qwen-VL has four positions of each token
        assert CACHE not in small


@pytest.mark.parametrize("name", GRIDDED)
def test_placed_items_hold_the_tokens_of_the_layout_and_their_grid(name: str) -> None:
    case = CASES[name]
    model = case.build()
    adapter = adapter_for(model)
    for variant in variants(name):
        call = case.batch(model, 3, "left", variant=variant).inputs
        layout = adapter.locate(call)
        assert layout is not None
        grid = adapter.grid(call, layout)
        placed = adapter.placed(call, layout)
        assert grid is not None
        assert placed is not None
        for sample, items in enumerate(placed):
            where = torch.cat([item.positions for item in items])
            assert where.tolist() == layout.mask[sample].nonzero()[:, 0].tolist()
            for number, item in enumerate(items):
                assert set(layout.groups[sample, item.positions].tolist()) == {number}
                assert item.coordinates is not None
                assert item.coordinates.tolist() == grid[sample, item.positions].tolist()
                assert item.modality == ("video" if variant == "video" else "image")


def test_a_family_without_a_grid_places_nothing() -> None:
    model = CASES["aya_vision"].build()
    adapter = adapter_for(model)
    call = CASES["aya_vision"].batch(model, 2).inputs
    layout = adapter.locate(call)
    assert layout is not None
    assert adapter.placed(call, layout) is None
    assert adapter.without_pixels(call) == {}


def test_unbroken_runs_are_no_row() -> None:
    """LightOnOCR's processor writes no break tokens; rows follow from the size of the image."""
    case = CASES["lighton_ocr"]
    model = case.build()
    adapter = adapter_for(model)
    call = dict(case.batch(model, 2, "none").inputs)
    rows = []
    for row in call["input_ids"]:  # all visual tokens in one run
        visual = row == 150
        rows.append(torch.cat([row[visual], row[~visual]]))
    call["input_ids"] = torch.stack(rows)
    layout = adapter.locate(call)
    assert layout is not None
    placed = adapter.placed(call, layout)
    assert placed is not None
    height, width = (call["image_sizes"][0] // 8).tolist()
    assert placed[0][0].grids == [(height, width)]
    del call["image_sizes"]
    unknown = adapter.placed(call, layout)
    assert unknown is not None
    assert unknown[0][0].coordinates is None
    assert unknown[0][0].grids == []


@pytest.mark.parametrize("how", ["forward", "generate", "embeddings"])
@pytest.mark.parametrize("name", GRIDDED)
def test_leaving_pixels_out_reads_no_value(name: str, how: str) -> None:
    """The meta device has none: whatever brings one to the host raises."""
    case = CASES[name]
    model = case.build()
    call: dict[str, Any] = dict(case.batch(model, 2, variant=variants(name)[-1]).inputs)
    if how == "generate":
        call = call_of_generate(model, call, 1)
        for computed in (call.get("mm_encoder_outputs") or {}).values():
            computed.pooler_output = [item.to("meta") for item in computed.pooler_output]
    if how == "embeddings":
        call["inputs_embeds"] = model.get_input_embeddings()(call.pop("input_ids")).detach()
    call = {key: value.to("meta") if isinstance(value, Tensor) else value for key, value in call.items()}
    assert adapter_for(model).without_pixels(call)


def test_what_is_left_of_arguments() -> None:
    small = small_arguments(
        {
            "ids": torch.ones(2, 3, dtype=torch.long),
            "pixels": torch.ones(4, 5),
            "list": [torch.ones(6), (7, "a")],
            "mask": torch.ones(1, 2, 3, 4, dtype=torch.bool),
            "cache": object(),
            "none": None,
            "flag": False,
        }
    )
    assert set(small) == {"ids", "pixels", "list", "mask", "flag"}
    assert small["ids"].tolist() == [[1, 1, 1]] * 2
    assert [small[name].device.type for name in ("pixels", "mask")] == ["meta", "meta"]
    assert small["pixels"].shape == (4, 5)
    assert small["list"][0].shape == (6,)
    assert small["list"][1] == [7, "a"]
    assert small["flag"] is False


# ---- placements ---


@pytest.mark.parametrize("resolutions", [RESOLUTIONS, MANY, MANY[::-1]])
def test_the_arrangement_is_that_of_the_processor(resolutions: tuple[tuple[int, int], ...]) -> None:
    for width, height in [*sizes(300), (336, 336), (672, 336), (384, 768), (1000, 1000)]:
        assert best_resolution(resolutions, width, height) == select_best_resolution((height, width), resolutions)


@pytest.mark.parametrize(("most", "resolutions", "tile", "side"), [(None, RESOLUTIONS, 336, 24), (9, MANY, 384, 27)])
def test_the_box_holds_the_picture_and_less_than_a_token_of_padding(
    most: int | None, resolutions: tuple[tuple[int, int], ...], tile: int, side: int
) -> None:
    placement = AnyResolution(resolutions, tile, side, 14, most=most)
    for width, height in sizes(300):
        tall, wide = select_best_resolution((height, width), resolutions)
        grid = torch.zeros(1, tall // tile * side, wide // tile * side)
        rows, columns = unpad_image(grid, (height, width)).shape[1:]
        ratio = 1.0 if most is None else (rows * columns / (most * side**2)) ** 0.5
        scaled = (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)
        overview, tiles = placement.views([(side, side), scaled], (width, height))
        assert (overview.picture, overview.rows, overview.title) == (0, side, "overview")
        assert (tiles.picture, (tiles.rows, tiles.columns), tiles.title) == (0, scaled, "tiles")
        left, top, right, bottom = tiles.box
        beyond = [(-left, columns), (right - 1, columns), (-top, rows), (bottom - 1, rows)]
        for share, tokens in beyond:
            assert -1.0 / tokens < share < 1.01 / tokens
        with pytest.raises(SampleError, match=f"{width} x {height} pixels does not make {scaled[0] + 1} rows"):
            placement.views([(side, side), (scaled[0] + 1, scaled[1])], (width, height))


@pytest.mark.parametrize(("fewest", "most"), [(1, 12), (2, 2), (2, 6), (4, 4), (6, 12)])
def test_tiles_are_arranged_as_the_processor_does(fewest: int, most: int) -> None:
    placement = TilesAndThumbnail((448, 448))
    ties = [(5 * k, 4 * k) for k in (10, 100, 200)] + [(5 * k, 12 * k) for k in (10, 60, 100)]
    for width, height in [*sizes(400), *ties]:
        columns, rows = get_optimal_tiled_canvas((height, width), (448, 448), fewest, most)
        if rows * columns == 1:
            assert placement.views([(16, 16)], (width, height)) == [View(0, WHOLE, 16, 16)]
            continue
        *tiles, overview = placement.views([(16, 16)] * (rows * columns + 1), (width, height))
        corners = [(c / columns, r / rows) for r in range(rows) for c in range(columns)]
        assert [view.box[:2] for view in tiles] == corners, (width, height)
        assert {view.title for view in tiles} == {"tiles"}
        assert (overview.box, overview.title) == (WHOLE, "overview")


def test_joined_tiles_fit_the_picture_or_are_refused() -> None:
    """Four tiles of a square picture are no row of four."""
    placement = OverviewAndJoinedTiles()
    assert [view.title for view in placement.views([(4, 4), (8, 8)], (100, 100))] == ["overview", "tiles"]
    assert [view.box for view in placement.views([(4, 4), (4, 8)], (200, 90))] == [WHOLE, WHOLE]
    assert len(placement.views([(4, 4), (12, 8)], (130, 200))) == 2
    assert placement.views([(4, 4)], (7, 900)) == [View(0, WHOLE, 4, 4)]
    for grid, size in [((4, 16), (100, 100)), ((4, 8), (90, 200)), ((8, 4), (200, 90))]:
        with pytest.raises(SampleError, match="does not make"):
            placement.views([(4, 4), grid], size)


def test_frames_and_wholes() -> None:
    assert [view.picture for view in Frames().views([(2, 3)] * 3, (10, 10))] == [0, 1, 2]
    assert [view.picture for view in Frames(2).views([(2, 3)] * 3, (10, 10))] == [0, 2, 4]
    assert (Frames().pictures(3), Frames(2).pictures(3), Whole().pictures(1)) == ((3, 3), (5, 6), (1, 1))
    assert Whole((0, 0, 0.5, 1)).views([(2, 3)], (10, 10)) == [View(0, (0, 0, 0.5, 1), 2, 3)]
    assert covered_by_patches(336, 14) == WHOLE
    assert covered_by_patches(384, 14) == (0, 0, 378 / 384, 378 / 384)
    assert part_of((0.2, 0.4, 0.6, 1.4), (0.5, 0.25, 1.0, 0.5)) == pytest.approx((0.4, 0.65, 0.6, 0.9))
