"""Towers whose patches are merged or pooled before the language model, against their own eager maps and states."""

from __future__ import annotations

import copy
import functools
import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.ops.test_entropy import literal
from tests.support.tiny import CASES
from tests.support.tiny.core import TRANSFORMERS, Variant, join_cat, pad, prompts, spread_weights
from tests.support.tiny.parts import PATCHES, text
from tests.support.tiny.qwen import IMAGE, PATCH, TYPES, VIDEO, grid_visual
from tests.support.tower import eager_maps, output_of
from tokenprune.adapters import adapter_for
from tokenprune.errors import UnsupportedFeatureError, UnsupportedModelError
from tokenprune.ops.entropy import Normalization
from tokenprune.ops.vision import StateSource, TowerLayer, TowerRuns, cell_patches, window_order
from tokenprune.pruners.base import Selection
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.matrix_entropy import MatrixEntropy
from tokenprune.scorers.vision_attention import VisionAttention
from tokenprune.signals.context import PruneContext

QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"]
SOURCES: tuple[StateSource, ...] = ("query", "key", "value", "hidden")
HOW: tuple[Normalization, ...] = ("trace", "none")


@dataclass
class Expected:
    """One entry per feature, in the order in which features enter the prompts."""

    attention: list[float]
    received: list[float]
    key: list[Tensor]
    features: list[Tensor]
    states: dict[str, list[Tensor]] = field(default_factory=dict)  # by source, [heads, head_dim] each


def merged(
    patches: list[list[int]],
    attention: Tensor,
    received: Tensor,
    key: Tensor,
    features: Tensor,
    states: dict[str, Tensor],
) -> Expected:
    """Means over the patches of each token."""
    return Expected(
        [sum(float(attention[p]) for p in cell) / len(cell) for cell in patches],
        [sum(float(received[p]) for p in cell) / len(cell) for cell in patches],
        [torch.stack([key[p] for p in cell]).mean(0) for cell in patches],
        [torch.stack([features[p] for p in cell]).mean(0) for cell in patches],
        {name: [sum(all_[p] for p in cell) / len(cell) for cell in patches] for name, all_ in states.items()},
    )


def by_head(model: Any, block: Any, inputs: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Queries, keys and values of a tower's layer as its modules make them, and its output in slices."""
    module = getattr(block, "self_attn", None) or getattr(block, "attention", None) or block.attn
    if hasattr(module, "qkv"):
        made = list(output_of(model, module.qkv, inputs).chunk(3, -1))
    else:
        norms = [getattr(module, f"{name}_norm", None) for name in "qk"]
        made = [
            output_of(model, norm or getattr(module, f"{n}_proj"), inputs) for n, norm in zip("qk", norms, strict=True)
        ]
        made.append(output_of(model, module.v_proj, inputs))
    made.append(output_of(model, block, inputs))
    return {name: t.unflatten(-1, (heads, -1)) for name, t in zip(SOURCES, made, strict=True)}


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
    key = output_of(model, module.qkv, inputs).unflatten(-1, (3, module.num_heads, -1))[:, 1].mean(1)
    order = window_index(tower, grid) if hasattr(tower, "fullatt_block_indexes") else range(len(shares) // 4)
    place = {cell: where for where, cell in enumerate(order)}
    patches = [[4 * place[cell] + i for i in range(4)] for cell in range(len(shares) // 4)]
    states = by_head(model, tower.blocks[layer], inputs, module.num_heads)
    return merged(patches, column, column, key, output_of(model, tower.blocks[layer], inputs), states)


def squares(model: Any, inputs: dict[str, Tensor], layer: int, tokens: int = 4) -> Expected:
    """Square images, a class token in front or none; 4 x 4 tokens (or another number) each."""
    tower = next(getattr(model.model, name) for name in ("vision_tower", "vision_model") if hasattr(model.model, name))
    layers: Any = getattr(tower.encoder, "layer", None) or tower.encoder.layers
    module = getattr(layers[layer], "attention", None) or layers[layer].self_attn
    (maps,) = eager_maps(model, module, inputs)
    source = output_of(model, getattr(module, "k_norm", module.k_proj), inputs)
    keys = source.unflatten(-1, (module.num_heads, -1)).mean(2)
    outputs = output_of(model, layers[layer], inputs)
    classes = maps.shape[-1] % 2  # grids are even
    side = int((maps.shape[-1] - classes) ** 0.5)
    step = side // tokens
    states = by_head(model, layers[layer], inputs, module.num_heads)
    whole = Expected([], [], [], [], {name: [] for name in SOURCES})
    for number, (image, key, output) in enumerate(zip(maps.mean(1), keys, outputs, strict=True)):
        patches = [
            [classes + (step * row + i) * side + step * column + j for i in range(step) for j in range(step)]
            for row, column in itertools.product(range(tokens), repeat=2)
        ]
        mine = {name: values[number] for name, values in states.items()}
        part = merged(patches, image[0] if classes else image.mean(0), image.mean(0), key, output, mine)
        whole.attention += part.attention
        whole.received += part.received
        whole.key += part.key
        whole.features += part.features
        for name in SOURCES:
            whole.states[name] += part.states[name]
    return whole


def pixtral(model: Any, inputs: dict[str, Tensor], layer: int) -> Expected:
    """All images in one map, which is zero between two of them."""
    tower = getattr(model.model, "vision_tower", None) or model.model.vision_encoder
    module = tower.transformer.layers[layer].attention
    (maps,) = eager_maps(model, module, inputs)
    key = output_of(model, module.k_proj, inputs)[0].unflatten(-1, (module.num_heads, -1)).mean(1)
    patches, shares, before = [], [], 0
    for height, width in (inputs["image_sizes"] // 4).tolist():
        for row, column in itertools.product(range(height // 2), range(width // 2)):
            corner = before + 2 * row * width + 2 * column
            patches.append([corner, corner + 1, corner + width, corner + width + 1])
        shares += [1 / (height * width)] * (height * width)
        before += height * width
    column = maps[0].mean(0).sum(0) * torch.tensor(shares)
    output = output_of(model, tower.transformer.layers[layer], inputs)[0]
    states = by_head(model, tower.transformer.layers[layer], inputs, module.num_heads)
    return merged(patches, column, column, key, output, {name: values[0] for name, values in states.items()})


LITERAL = {
    **dict.fromkeys(QWEN, qwen),
    **dict.fromkeys(["gemma3", "paligemma", "idefics3", "smolvlm", "internvl"], squares),
    **dict.fromkeys(["mistral3", "lighton_ocr", "ministral3"], pixtral),
}


@functools.cache
def built(name: str, attention: str = "sdpa") -> Any:
    """One of the tiny models; nothing here changes it. Its tower has four heads: two have no entropy by trace."""
    config = copy.deepcopy(CASES[name].build(attention).config)
    vision = config.vision_config
    setattr(vision, "num_heads" if hasattr(vision, "num_heads") else "num_attention_heads", 4)
    if hasattr(vision, "head_dim"):
        vision.head_dim = 8
    torch.manual_seed(0)
    model = type(CASES[name].build(attention))._from_config(config, attn_implementation=attention).eval()
    spread_weights(model, 0)
    return model


class Looks(TopK):
    """Keeps what it has seen."""

    seen: Any = None
    states: Any = None
    entropy: Any = None

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"tower_value"}

    def select(self, ctx: PruneContext) -> Selection:
        layer = self.scorer.layer  # type: ignore[attr-defined]
        found = ctx.vision(layer)
        type(self).seen = (found.attention, found.received, found.key, found.features)
        type(self).states = {source: found.states(source) for source in SOURCES}
        type(self).entropy = {
            (source, how): MatrixEntropy(source=source, tower_layer=layer, normalization=how).score(ctx)
            for source, how in itertools.product(SOURCES, HOW)
        }
        return super().select(ctx)


def method(layer: int, stage: int = 0, **budget: Any) -> tp.Method:
    return tp.Method(
        layers={"name": "fixed", "layers": [stage]},
        pruner=Looks(scorer=VisionAttention(layer=layer)),
        budget=budget or {"name": "keep_ratio", "ratio": 0.5},
    )


def compare(model: Any, groups: list[list[int]], inputs: dict[str, Tensor], layer: int, expected: Expected) -> None:
    """Values at every token, and what a budget keeps of every sample."""
    with torch.no_grad(), tp.apply(model, method(layer)) as run:
        model(**inputs)
    attention, received, key, features = Looks.seen
    done = 0
    for sample, row in enumerate(inputs["input_ids"]):
        visual = torch.isin(row, torch.tensor([IMAGE, VIDEO])).nonzero()[:, 0].tolist()
        mine = slice(done, done + len(visual))
        done += len(visual)
        scale = max(expected.attention[mine])
        wanted = [value / scale for value in expected.attention[mine]]
        assert (attention[sample, : len(visual)] / scale).tolist() == pytest.approx(wanted, abs=2e-6)
        wanted = [value / scale for value in expected.received[mine]]
        assert (received[sample, : len(visual)] / scale).tolist() == pytest.approx(wanted, abs=2e-6)
        assert torch.allclose(key[sample, : len(visual)].double(), torch.stack(expected.key[mine]), atol=1e-5)
        assert torch.allclose(features[sample, : len(visual)].double(), torch.stack(expected.features[mine]), atol=1e-5)
        for source, wanted_states in expected.states.items():
            tokens = torch.stack(wanted_states[mine])
            assert torch.allclose(Looks.states[source][sample, : len(visual)].double(), tokens, atol=1e-5)
            for how in HOW:
                wanted = [literal(token, how == "trace") if token.any() else 0.0 for token in tokens]
                assert Looks.entropy[source, how][sample, : len(visual)].tolist() == pytest.approx(wanted, abs=1e-4)
        assert not attention[sample, len(visual) :].any()
        kept = [int(p) for p in run.stages[0].kept[sample] if p >= 0]
        assert len(kept) == run.stages[0].after[sample] < run.stages[0].before[sample] == len(visual)
        score = dict(zip(visual, expected.attention[mine], strict=True))
        assert sum(groups[sample]) == len(visual)
        for size in groups[sample]:
            part, visual = visual[:size], visual[size:]
            worst = min((score[p] for p in part if p in kept), default=2.0)
            best = max((score[p] for p in part if p not in kept), default=-1.0)
            assert worst >= best - 2e-6 * scale
    assert done == len(expected.attention)


@pytest.mark.parametrize(("layer", "variant"), [(0, "ragged"), (-1, "ragged"), (-1, "multi")])
@pytest.mark.parametrize("name", list(LITERAL))
def test_tokens_get_what_their_patches_get(name: str, layer: int, variant: Variant) -> None:
    case = CASES[name]
    if variant not in case.variants:
        pytest.skip("not a variant of this family")
    model = built(name, "eager")
    batch = case.batch(model, 3, "left", variant=variant)
    compare(model, batch.groups, batch.inputs, layer, LITERAL[name](model, batch.inputs, layer))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_frames_of_a_video_do_not_see_each_other(name: str, layer: int) -> None:
    case = CASES[name]
    model = built(name, "eager")
    batch = case.batch(model, 2, "left", variant="video")
    groups = [[sum(sizes)] for sizes in batch.groups]  # one video, its frames apart or not
    compare(model, groups, batch.inputs, layer, qwen(model, batch.inputs, layer))


GRIDS = [(1, 6, 10), (2, 10, 6), (1, 2, 2), (3, 8, 14)]


@pytest.mark.parametrize("layer", [0, 1])
def test_windows_of_all_sizes(layer: int) -> None:
    """Grids that the windows do not fit: edges and corners have smaller ones."""
    model = built("qwen2_5_vl", "eager")
    noise = torch.Generator().manual_seed(0)
    sizes = [t * h * w for t, h, w in GRIDS]
    rows = [[5, IMAGE, *[IMAGE] * (size // 4 - 1), 6, 7] for size in sizes]
    pixels = torch.randn(sum(sizes), PATCH, generator=noise)
    inputs = TYPES(model, {**pad(rows, "left"), "pixel_values": pixels, "image_grid_thw": torch.tensor(GRIDS)})
    module = model.model.visual.blocks[layer].attn
    assert len({made.shape for made in eager_maps(model, module, inputs)}) >= 3
    expected = qwen(model, inputs, layer)
    with torch.no_grad(), tp.apply(model, method(layer, tokens=9, name="keep_count")) as run:
        model(**inputs)
    assert run.stages[0].after == [9, 9, 1, 9]
    flat = [float(x) for row, size in zip(Looks.seen[0], sizes, strict=True) for x in row[: size // 4]]
    assert flat == pytest.approx(expected.attention, abs=1e-6)


def test_the_windows_are_the_towers() -> None:
    """The order of cells and the size of every window."""
    tower: Any = CASES["qwen2_5_vl"].build().model.visual
    for size in (16, 24, 40):
        tower.window_size = size
        order, lengths = window_order([(t, h // 2, w // 2) for t, h, w in GRIDS], size // 8)
        assert order.tolist() == window_index(tower, torch.tensor(GRIDS))
        assert sum(lengths) == len(order)


def test_cells() -> None:
    assert cell_patches(2, 4, 2).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert cell_patches(3, 5, 2).tolist() == [[0, 1, 5, 6], [2, 3, 7, 8]]  # what fills no cell is left out
    assert cell_patches(2, 2, 1).tolist() == [[0], [1], [2], [3]]


@pytest.mark.parametrize("layer", [0, 1])
def test_average_pooling(layer: int) -> None:
    """Gemma 3 with 2 x 2 tokens of 2 x 2 patches each."""
    model = copy.deepcopy(built("gemma3"))
    model.config.mm_tokens_per_image = 4
    model = type(model)._from_config(model.config, attn_implementation="eager").eval()
    spread_weights(model, 0)
    rows = [[3, 4, 152, *[IMAGE] * 4, 153, 9], [3, 152, *[IMAGE] * 4, 153, 5, 152, *[IMAGE] * 4, 153]]
    inputs = pad(rows, "left")
    inputs["token_type_ids"] = (inputs["input_ids"] == IMAGE).long()
    inputs["pixel_values"] = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    compare(model, [[4], [4, 4]], inputs, layer, squares(model, inputs, layer, tokens=2))


def test_normalised_queries_and_keys() -> None:
    """InternVL's larger towers."""
    config = copy.deepcopy(built("internvl").config)
    config.vision_config.use_qk_norm = True
    torch.manual_seed(0)
    model: Any = tp_model(type(built("internvl")), config)
    for block in model.model.vision_tower.encoder.layer:
        block.attention.q_norm.weight.data.uniform_(0.5, 3.0)
        block.attention.k_norm.weight.data.uniform_(0.5, 3.0)
    batch = CASES["internvl"].batch(model, 2, "left", variant="ragged")
    compare(model, batch.groups, batch.inputs, -1, squares(model, batch.inputs, -1))


def tp_model(kind: Any, config: Any) -> Any:
    model = kind._from_config(config, attn_implementation="eager").eval()
    spread_weights(model, 0)
    return model


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_padding_of_a_tile_pays_and_receives_nothing(name: str) -> None:
    """The processor pads images of a batch to the largest."""
    case = CASES[name]
    model = built(name, "eager")
    batch = case.batch(model, 2, "left", variant="image")
    mask = torch.ones(2, 1, 32, 32, dtype=torch.long)
    mask[1, :, 20:] = 0
    mask[1, :, :, 12:] = 0
    inputs = {**batch.inputs, "pixel_attention_mask": mask}
    module = model.model.vision_model.encoder.layers[-1].self_attn
    (maps,) = eager_maps(model, module, inputs)
    with torch.no_grad(), tp.apply(model, method(-1)):
        model(**inputs)
    real = [row * 8 + column for row in range(5) for column in range(3)]
    column = maps[1].mean(0)[real].mean(0)
    assert float(column[real].sum()) == pytest.approx(1.0)
    for token, (row, col) in enumerate(itertools.product(range(4), repeat=2)):
        wanted = sum(float(column[(2 * row + i) * 8 + 2 * col + j]) for i in (0, 1) for j in (0, 1)) / 4
        assert float(Looks.seen[1][1, token]) == pytest.approx(wanted, abs=1e-6)
    whole = maps[0].mean(0).mean(0).view(4, 2, 4, 2).mean((1, 3)).flatten()
    assert torch.allclose(Looks.seen[1][0].double(), whole, atol=1e-6)


def test_pixtral_under_llava() -> None:
    """Every patch is a token; images differ in size."""
    import transformers as tf

    config = tf.LlavaConfig(
        vision_config={**PATCHES, "model_type": "pixtral", "image_size": 64, "num_attention_heads": 4, "head_dim": 8},
        text_config=text(),
        image_token_id=IMAGE,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    model = tp_model(tf.LlavaForConditionalGeneration, config)
    sizes = torch.tensor([[8, 12], [16, 8], [12, 16]])
    rows = [[3, 4], [5, 6, 7]]
    for row, images in ((0, sizes[:1]), (1, sizes[1:])):
        for height, width in images.tolist():
            rows[row] += [*([*[IMAGE] * (width // 4), 152] * (height // 4)), 8]
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    inputs = {**pad(rows, "left"), "pixel_values": pixels, "image_sizes": sizes}
    module = model.model.vision_tower.transformer.layers[1].attention
    (maps,) = eager_maps(model, module, inputs)
    patches = [6, 8, 12]
    shares = torch.tensor([1 / n for n in patches for _ in range(n)])
    with torch.no_grad(), tp.apply(model, method(1)) as run:
        model(**inputs)
    assert run.stages[0].after == [3, 10]
    found = torch.cat([Looks.seen[0][0, :6], Looks.seen[0][1, :20]])
    assert torch.allclose(found.double(), maps[0].mean(0).sum(0) * shares, atol=1e-6)
    for source, states in by_head(model, model.model.vision_tower.transformer.layers[1], inputs, 4).items():
        found = torch.cat([Looks.states[source][0, :6], Looks.states[source][1, :20]])
        assert torch.allclose(found.double(), states[0], atol=1e-5)


def mixed_inputs(model: Any) -> dict[str, Tensor]:
    """A video before an image in the first prompt, two images around a video in the second."""
    noise = torch.Generator().manual_seed(3)
    plans = [[("video", 0), ("image", 1)], [("image", 2), ("video", 0), ("image", 0)]]
    samples = [[grid_visual(model, kind, size, noise) for kind, size in plan] for plan in plans]
    return TYPES(model, {**pad(prompts(samples, "left", False, noise), "left"), **join_cat(samples)})


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_images_and_videos_in_one_prompt(name: str, layer: int) -> None:
    """The tower runs twice; each placeholder gets what its kind of input made."""
    model = built(name, "eager")
    inputs = mixed_inputs(model)
    kinds = {}
    for kind, other in (("image", "video"), ("video", "image")):
        alone = {k: v for k, v in inputs.items() if other not in k and k != "pixel_values_videos"}
        if kind == "video":
            alone = {k: v for k, v in inputs.items() if k != "pixel_values" and "image" not in k}
        ids = alone["input_ids"]
        alone["input_ids"] = torch.where(ids == (VIDEO if kind == "image" else IMAGE), 9, ids)
        alone_expected = qwen(model, TYPES(model, alone), layer)
        kinds[kind] = iter(
            zip(alone_expected.attention, *(alone_expected.states[name] for name in SOURCES), strict=True)
        )
    with torch.no_grad(), tp.apply(model, method(layer)) as run:
        model(**inputs)
        attention, states, kept = Looks.seen[0], Looks.states, run.stages[0].kept
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert torch.equal(run.stages[0].kept, kept)
    for sample, row in enumerate(inputs["input_ids"]):
        visual = [int(i) for i in row if int(i) in (IMAGE, VIDEO)]
        wanted = [next(kinds["image" if token == IMAGE else "video"]) for token in visual]
        expected, *by_source = zip(*wanted, strict=True)
        assert attention[sample, : len(visual)].tolist() == pytest.approx(list(expected), abs=1e-6)
        for source, tokens in zip(SOURCES, by_source, strict=True):
            assert torch.allclose(states[source][sample, : len(visual)].double(), torch.stack(tokens), atol=1e-5)
    assert not [left for values in kinds.values() for left in values]


def same_in_generate(model: Any, inputs: dict[str, Tensor], beams: int = 1) -> None:
    """``generate`` sees and keeps what a forward does, for every beam, and again when it is called again."""
    with torch.no_grad(), tp.apply(model, method(-1)) as run:
        model(**inputs)
        expected, states = run.stages[0].kept, Looks.states
        for _ in range(2):
            model.generate(**inputs, max_new_tokens=2, do_sample=False, num_beams=beams)
            assert torch.equal(run.stages[0].kept, expected.repeat_interleave(beams, dim=0))
            for source in SOURCES:
                assert torch.equal(Looks.states[source], states[source].repeat_interleave(beams, dim=0))


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "gemma3", "smolvlm", "internvl", "mistral3"])
def test_generate_keeps_what_a_forward_keeps(name: str, beams: int) -> None:
    if beams > 1 and TRANSFORMERS < (5, 23):
        pytest.skip("repeats images one by one, but samples whole")
    same_in_generate(built(name), CASES[name].batch(built(name), 3, "left", variant="ragged").inputs, beams)


FAMILIES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma", "idefics3", "smolvlm", "internvl", "mistral3"]
METHODS: dict[str, dict[str, Any]] = {
    "vision-attention": {},
    "hiprune": {"object_layer": 0, "deep_layer": 1},
    "scope": {},
    "prunesid": {},
    "holov": {"crops": 2},
    "visionzip": {"contextual": 0.25},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_named_methods_run_on_the_family(name: str) -> None:
    model = built(name)
    inputs = CASES[name].batch(model, 2, "left", variant="multi").inputs
    for known, fields in METHODS.items():
        how = tp.load_method(known).model_dump(mode="json", exclude_none=True)
        how["pruner"] = {**how["pruner"], **fields}
        how["budget"] = {"name": "keep_count", "tokens": 11}
        with torch.no_grad(), tp.apply(model, tp.Method.from_dict(how)) as run:
            assert model(**inputs).logits.isfinite().all()
        assert run.stages[0].after == [11, 11]


# ---- the layer alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [3, 64])
def test_blocks_and_cells_written_out(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images of 6 and 4 tokens; the first in windows of 2 and 4."""
    monkeypatch.setattr("tokenprune.ops.vision._ROWS", rows)
    noise = torch.Generator().manual_seed(0)
    query, key, plain = (torch.randn(1, 10, 2, 4, generator=noise) for _ in range(3))
    merge = torch.tensor([[0, 1], [8, 9], [4, 2], [3, 5], [6, 7]])
    layer = TowerLayer(query, key, 0, 0.5, [(2, 6), (4, 6), (4, 4)], None, merge, plain)
    received = [0.0] * 10
    for window, whole in ((range(2), 6), (range(2, 6), 6), (range(6, 10), 4)):
        for head, row in itertools.product(range(2), window):
            logits = [0.5 * float(query[0, row, head] @ key[0, other, head]) for other in window]
            for other, weight in zip(window, torch.tensor(logits).softmax(0).tolist(), strict=True):
                received[other] += weight / 2 / whole
    expected = [(received[a] + received[b]) / 2 for a, b in merge.tolist()]
    assert layer.attention[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(layer.attention, layer.received)
    means = torch.stack([plain[0, [a, b]].mean((0, 1)) for a, b in merge.tolist()])
    assert torch.allclose(layer.mean_key[0], means, atol=1e-6)
    both = TowerRuns([layer, layer])
    assert both.features == 10
    assert both.attention.tolist() == [2 * layer.attention[0].tolist()]
    assert both.received.shape == (1, 10)
    assert both.mean_key.shape == (1, 10, 4)


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    states = torch.empty(1, 12, 2, 4, device="meta")
    where = torch.empty(3, 4, dtype=torch.long, device="meta")
    packed = TowerLayer(states, states, 0, 1.0, [(8, 8), (4, 4)], None, where, states)
    assert packed.attention.shape == (1, 3)
    assert packed.mean_key.shape == (1, 3, 4)
    padded = TowerLayer(states, states, 0, 1.0, unpadded=torch.ones(1, 12, dtype=torch.bool, device="meta"))
    assert padded.received.shape == (1, 12)


def test_no_map_of_all_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 64 rows of a large image are there at once."""
    sizes: list[int] = []
    own = Tensor.softmax
    monkeypatch.setattr(Tensor, "softmax", lambda self, dim: (sizes.append(self.numel()), own(self, dim))[1])
    states = torch.randn(1, 1000, 2, 4)
    assert TowerLayer(states, states, 0, 1.0, [(1000, 1000)]).attention.shape == (1, 1000)
    assert max(sizes) == 2 * 64 * 1000


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["glm4v", "qwen3_5", "aya_vision"])
def test_other_families_are_refused_up_front(name: str) -> None:
    model = built(name)
    with pytest.raises(UnsupportedModelError), tp.apply(model, method(-1, stage=0)):
        pass


def test_pixtral_without_sizes_is_refused() -> None:
    site = adapter_for(built("mistral3")).tower_site(-1)
    with pytest.raises(UnsupportedFeatureError, match="image_sizes"):
        site.read(torch.zeros(1, 4, 32), torch.zeros(1, 4, 32), None, {})
