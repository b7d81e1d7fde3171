"""Signals of the tower where the model cuts, pools or scales what its tower made: LLaVA-NeXT and its kin, Video-LLaVA.

Expected is what the model's own packing makes of the tower's own attention maps, as if they were features.
"""

from __future__ import annotations

import copy
import itertools
import math
import sys
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor
from torch.nn.functional import interpolate

import tokenprune as tp
from tests.adapters.test_vision_families import (
    SOURCES,
    Expected,
    Looks,
    built,
    by_head,
    compare,
    method,
    same_in_generate,
)
from tests.support.tiny import CASES
from tests.support.tiny.core import TRANSFORMERS, Variant, pad, spread_weights
from tests.support.tiny.qwen import IMAGE, VIDEO
from tests.support.tower import eager_maps, output_of
from tokenprune.adapters import adapter_for
from tokenprune.errors import UnsupportedFeatureError
from tokenprune.ops.vision import bilinear_patches

HEADS = 4
ANYRES = ["llava_next", "llava_onevision", "llava_next_video"]


def shown(model: Any, inputs: dict[str, Tensor], layer: int, tower: Any, classes: int) -> list[Tensor]:
    """Attention, attention from all, mean keys and output of every patch of every tile, ``[tiles, patches, ...]``.

    Behind them states as :data:`SOURCES` names them, the heads in a row.
    """
    block = getattr(tower, "vision_model", tower).encoder.layers[layer]  # 5.17 has one more level
    module = block.self_attn
    (maps,) = eager_maps(model, module, inputs)
    heads = maps.mean(1)
    key = output_of(model, module.k_proj, inputs).unflatten(-1, (module.num_heads, -1)).mean(2)
    row = heads[:, 0] if classes else heads.mean(1)
    output = output_of(model, block, inputs)
    states = by_head(model, block, inputs, module.num_heads)
    assert states["query"].shape[-2] == HEADS
    made = [values.flatten(-2) for values in states.values()]
    return [row[..., None][:, classes:], *(t[:, classes:] for t in (heads.mean(1)[..., None], key, output, *made))]


def expect(values: list[Tensor]) -> Expected:
    """What :func:`shown` shows by feature, ``[features, ...]``."""
    attention, received, key, output, *states = values
    by_source = {name: list(t.unflatten(-1, (HEADS, -1))) for name, t in zip(SOURCES, states, strict=True)}
    return Expected(attention[:, 0].tolist(), received[:, 0].tolist(), list(key), list(output), by_source)


def tiles_of(model: Any, inputs: dict[str, Tensor]) -> list[int]:
    """How many tiles of the padded pixels are real."""
    count = sys.modules[type(model.model).__module__].image_size_to_num_patches  # type: ignore[attr-defined]
    return [count(size, model.config.image_grid_pinpoints, 32) for size in inputs["image_sizes"]]


def packed(model: Any, inputs: dict[str, Tensor], layer: int) -> Expected:
    """The model packs attention and keys as it packs features; the newline is zero."""
    onevision = "Onevision" in type(model).__name__
    name = "vision_aspect_ratio" if onevision else "vision_feature_select_strategy"
    found = []
    for values in shown(model, inputs, layer, model.model.vision_tower, 0 if onevision else 1):
        parts, _ = model.model.pack_image_features(
            values.split(tiles_of(model, inputs)),
            inputs["image_sizes"],
            image_newline=torch.zeros(values.shape[-1], dtype=values.dtype),
            **{name: getattr(model.config, name)},
        )
        found.append(torch.cat(parts))
    return expect(found)


def of_sizes(model: Any, sizes: list[list[int]]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """A prompt for each image of so many pixels (height and width), and how many tokens each is."""
    pixels = torch.randn(len(sizes), 5, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    values = {"pixel_values": pixels, "image_sizes": torch.tensor(sizes)}
    with torch.no_grad():
        made = model.model.get_image_features(**values, return_dict=True).pooler_output
    rows = [[3] * (1 + number) + [IMAGE] * len(part) + [4] for number, part in enumerate(made)]
    return {**pad(rows, "left"), **values}, [[len(part)] for part in made]


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("variant", ["multi", "ragged"])
@pytest.mark.parametrize("name", ANYRES)
def test_tokens_get_what_their_patches_get(name: str, variant: Variant, layer: int) -> None:
    model = built(name, "eager")
    batch = CASES[name].batch(model, 3, "left", variant=variant)
    expected = packed(model, batch.inputs, layer)
    assert 0.0 in expected.attention  # newlines
    assert any(not token.any() for token in expected.states["query"])
    compare(model, batch.groups, batch.inputs, layer, expected)


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("name", ANYRES)
def test_padding_is_cut_off(name: str, layer: int) -> None:
    """Images that fill no tiles, wide ones and tall ones."""
    model = built(name, "eager")
    inputs, groups = of_sizes(model, [[40, 64], [64, 40], [20, 60], [60, 20], [64, 64]])
    # of 8 x 8 patches two rows are gone, or two columns; a newline ends each row
    assert [size - 16 for (size,) in groups[:2]] == [6 * 9, 8 * 7]
    compare(model, groups, inputs, layer, packed(model, inputs, layer))
    same_in_generate(model, inputs)


def test_images_that_are_scaled_down() -> None:
    """OneVision scales large images down between tower and prompt; ``generate`` does not pass their sizes on."""
    config = copy.deepcopy(built("llava_onevision").config)
    config.vision_aspect_ratio = "anyres_max_2"
    torch.manual_seed(0)
    model: Any = tf.LlavaOnevisionForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    spread_weights(model, 0)
    inputs, groups = of_sizes(model, [[64, 64], [60, 30], [40, 64]])
    assert groups[0] == [16 + 5 * 6]  # 8 x 8 patches to 5 x 5, and a newline after each row
    for layer in (0, 1):
        compare(model, groups, inputs, layer, packed(model, inputs, layer))
    same_in_generate(model, inputs)


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("name", ["llava_onevision", "llava_next_video"])
def test_pooled_frames(name: str, layer: int) -> None:
    model = built(name, "eager")
    batch = CASES[name].batch(model, 2, "left", variant="video")
    onevision = name == "llava_onevision"
    found = []
    for values in shown(model, batch.inputs, layer, model.model.vision_tower, 0 if onevision else 1):
        pool = model.model.apply_pooling if onevision else model.model.vision_resampler
        made = pool(values).unflatten(0, (2, -1)).flatten(1, 2)
        if onevision:  # a newline ends the video
            made = torch.cat([made, made.new_zeros(2, 1, made.shape[-1])], 1)
        found.append(made.flatten(0, 1))
    compare(model, batch.groups, batch.inputs, layer, expect(found))


def test_frames_of_an_odd_number_of_patches() -> None:
    """27 x 27 patches of the released models become 14 x 14 tokens."""
    values = torch.randn(27, 27, generator=torch.Generator().manual_seed(0))
    for to in ((14, 14), (27, 27), (9, 20), (1, 3)):
        picked, weights = bilinear_patches(27, 27, *to)
        expected = interpolate(values[None, None], to, mode="bilinear")[0, 0].flatten()
        assert torch.allclose((values.flatten()[picked] * weights).sum(1), expected, atol=1e-5)
        assert torch.allclose(weights.sum(1), torch.ones(len(weights)))
    same, weights = bilinear_patches(5, 7, 5, 7)
    assert torch.equal(same[:, 0], torch.arange(35))
    assert torch.equal(weights, torch.tensor([1.0, 0, 0, 0]).expand(35, 4))


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("variant", ["multi", "ragged", "video"])
@pytest.mark.parametrize("name", [*ANYRES, "video_llava"])
def test_generate_keeps_what_a_forward_keeps(name: str, variant: Variant, beams: int) -> None:
    """Without image sizes: ``generate`` does not pass them on."""
    if beams > 1 and TRANSFORMERS < (5, 23):
        pytest.skip("repeats images one by one, but samples whole")
    case = CASES[name]
    if variant not in case.variants:
        pytest.skip("not a variant of this family")
    same_in_generate(built(name), case.batch(built(name), 3, "left", variant=variant).inputs, beams)


def test_an_overview_alone() -> None:
    """Several images to a OneVision prompt: no tiles."""
    model = built("llava_onevision", "eager")
    pixels = torch.randn(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    values = {
        "pixel_values": pixels,
        "image_sizes": torch.tensor([[64, 64], [32, 64]]),
        "batch_num_images": torch.tensor([2]),
    }
    side = math.isqrt(model.config.vision_config.image_size**2 // model.config.vision_config.patch_size**2)
    image = [IMAGE] * (side * side + 1)
    inputs = {**pad([[3, *image, 4, *image, 5]], "left"), **values}
    rows = shown(model, inputs, -1, model.model.vision_tower, 0)
    found = [torch.cat([made, torch.zeros_like(made[:, :1])], 1).flatten(0, 1) for made in rows]
    compare(model, [[len(image)] * 2], inputs, -1, expect(found))


@pytest.mark.parametrize("layer", [0, -1])
@pytest.mark.parametrize("variant", ["ragged", "video"])
def test_video_llava_has_two_towers(variant: Variant, layer: int) -> None:
    """Images without their class token; frames of videos with it, as one token among the others."""
    model = built("video_llava", "eager")
    batch = CASES["video_llava"].batch(model, 3, "left", variant=variant)
    video = variant == "video"
    tower = model.model.video_tower if video else model.model.image_tower
    rows = shown(model, batch.inputs, layer, tower, 0 if video else 1)
    compare(model, batch.groups, batch.inputs, layer, expect([made.flatten(0, 1) for made in rows]))


def test_both_towers_of_one_prompt() -> None:
    """Videos before and after images; each placeholder gets what its own tower showed."""
    case = CASES["video_llava"]
    model = built("video_llava", "eager")
    noise = torch.Generator().manual_seed(3)
    made = [[case.make_visual(model, kind, 0, noise) for _ in range(2)] for kind in ("image", "video")]
    values = {name: torch.cat([v.tensors[name] for v in both]) for both in made for name in both[0].tensors}
    one, many = [IMAGE] * 16, [VIDEO] * 68
    inputs = {**pad([[3, *many, 4, *one, 5], [6, *one, 7, *many, 8, 9]], "left"), **values}
    seen = {
        kind: iter(shown(model, inputs, -1, getattr(model.model, f"{kind}_tower"), kind == "image")[0].flatten())
        for kind in ("image", "video")
    }
    with torch.no_grad(), tp.apply(model, method(-1)) as run:
        model(**inputs)
        attention, kept = Looks.seen[0], run.stages[0].kept
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert torch.equal(run.stages[0].kept, kept)
    for sample, row in enumerate(inputs["input_ids"].tolist()):
        wanted = [float(next(seen["image" if i == IMAGE else "video"])) for i in row if i in (IMAGE, VIDEO)]
        assert attention[sample].tolist() == pytest.approx(wanted, abs=1e-6)
    assert not list(itertools.chain(*seen.values()))


def test_nothing_tells_the_tiles() -> None:
    """A tower that somebody runs by hand, inside the block, before a forward with features of his own."""
    site = adapter_for(built("llava_next")).tower_site(-1)
    states = torch.zeros(1, 17, 32)
    with pytest.raises(UnsupportedFeatureError, match="pixel_values and image_sizes"):
        site.read(states, states, None, {})


def test_the_model_has_its_methods_back() -> None:
    """Also where somebody else had put one in its place."""
    model = built("llava_onevision")
    inputs = CASES["llava_onevision"].batch(model, 2, "left").inputs
    before = set(vars(model.model))
    with torch.no_grad(), tp.apply(model, method(-1)) as run:
        assert set(vars(model.model)) - before == {"forward", "get_image_features", "get_video_features"}
        model(**inputs)
        kept = run.stages[0].kept
    assert set(vars(model.model)) == before
    calls: list[int] = []
    own = model.model.get_image_features
    model.model.get_image_features = lambda *args, **kwargs: (calls.append(1), own(*args, **kwargs))[1]
    theirs = model.model.get_image_features
    try:
        with torch.no_grad(), tp.apply(model, method(-1)) as run:
            model(**inputs)
            assert torch.equal(run.stages[0].kept, kept)
        assert calls == [1]
        assert model.model.get_image_features is theirs
    finally:
        del model.model.get_image_features
    with torch.no_grad(), tp.apply(model, tp.load_method("fastv")):  # who does not read the tower does not listen
        assert set(vars(model.model)) - before == {"forward"}
