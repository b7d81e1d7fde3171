"""What the adapters say about every family, against what the models really do and against grids written by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from tests.support.tiny import CASES, CORE
from tests.support.tiny.core import IMAGE, VIDEO
from tests.support.tiny.llava import SIZES
from tokenprune.adapters import adapter_for
from tokenprune.adapters.base import Adapter
from tokenprune.adapters.generic import GenericAdapter
from tokenprune.adapters.items import assign_items
from tokenprune.adapters.layout import VisualLayout
from tokenprune.adapters.structure import EXACT_TYPES
from tokenprune.ops.gather import rows_at
from tokenprune.signals.signals import AttentionProbe

HYBRID = {name for name, case in CASES.items() if case.hybrid}
UNREADABLE = {"llava_gpt_neox", "llava_deepseek_v3", "kimi_k25", "fuyu", "hunyuan_vl"}
"""Their attention has no q_proj, k_proj and v_proj, or normalises behind the rotation."""
NO_ROWS = {"llava_gpt_oss", "llama4", "llama4_tuned", "ministral3", "muse_glimmer", "muse_spark", "blip_2"}
"""Their attention weights are more than a softmax of rotated dot products, or their positions are no rotation."""
READABLE = sorted(set(CASES) - HYBRID - UNREADABLE)


@lru_cache(maxsize=2)
def model_of(name: str, attention: str = "eager") -> PreTrainedModel:
    return CASES[name].build(attention)


def groups_of(layout: VisualLayout) -> list[list[int]]:
    """Sizes of the groups of every sample."""
    return [
        [int((row == g).sum()) for g in range(int(row.max()) + 1)] if bool((row >= 0).any()) else []
        for row in layout.groups
    ]


def known_groups(name: str, variant: str, groups: list[list[int]]) -> list[list[int]]:
    """The case's sizes, frames of one video joined."""
    if variant == "video" and name.startswith("qwen3_vl"):
        return [[sum(sizes)] for sizes in groups]
    return groups


class StopCallError(Exception):
    """Raised once the arguments of the model's call are known."""


def call_of_generate(model: PreTrainedModel, inputs: dict[str, Tensor], beams: int) -> dict[str, Any]:
    """What ``generate`` hands to the model in its first step."""
    seen: dict[str, Any] = {}

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)
        raise StopCallError

    handle = model.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with pytest.raises(StopCallError):
            model.generate(**inputs, max_new_tokens=2, num_beams=beams)
    finally:
        handle.remove()
    return seen


# ---- where the visual tokens are, and of which image ---


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("name", CASES)
def test_locates_every_visual_token_and_its_image(name: str, padding: Any) -> None:
    case, model = CASES[name], model_of(name)
    adapter = adapter_for(model)
    for variant in case.variants:
        batch = case.batch(model, 3, padding, variant=variant)
        layout = adapter.locate(batch.inputs)
        assert layout is not None
        assert layout.mask.sum(1).tolist() == [sum(sizes) for sizes in batch.groups]
        assert torch.equal(layout.mask, torch.isin(batch.inputs["input_ids"], torch.tensor(case.visual_ids)))
        assert torch.equal(layout.groups >= 0, layout.mask)
        assert groups_of(layout) == known_groups(name, variant, batch.groups), variant


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("name", CORE)
def test_generate_tells_the_same_as_forward(name: str, beams: int) -> None:
    case, model = CASES[name], model_of(name)
    adapter = adapter_for(model)
    for variant in case.variants:
        if variant == "text":
            continue
        inputs = case.batch(model, 3, "left", variant=variant).inputs
        plain = adapter.locate(inputs)
        assert plain is not None
        want = adapter.grid(inputs, plain)
        assert want is not None
        call = call_of_generate(model, inputs, beams)
        layout = adapter.locate(call)
        assert layout is not None
        assert torch.equal(layout.groups, plain.groups.repeat_interleave(beams, 0)), variant
        grid = adapter.grid(call, layout)
        assert grid is not None
        assert torch.equal(grid, want.repeat_interleave(beams, 0)), variant


@pytest.mark.parametrize("name", CORE)
def test_embeddings_serve_as_well_as_ids(name: str) -> None:
    case, model = CASES[name], model_of(name)
    adapter = adapter_for(model)
    inputs = case.batch(model, 2, "none", variant="multi").inputs
    want = adapter.locate(inputs)
    ids = inputs.pop("input_ids")
    layout = adapter.locate({**inputs, "inputs_embeds": model.get_input_embeddings()(ids)})
    assert want is not None
    assert layout is not None
    assert torch.equal(layout.groups, want.groups)


TOUCHING = ["llava", "llava_next", "llava_onevision", "llava_next_video", "video_llava", "qwen2_vl", "gemma3"]


@pytest.mark.parametrize("name", [*TOUCHING, "paligemma", "smolvlm", "idefics3"])
def test_images_that_touch_are_told_apart(name: str) -> None:
    case, model = CASES[name], model_of(name)
    batch = case.batch(model, 2, "none", variant="ragged")
    ids = batch.inputs["input_ids"]
    for row in ids:  # all visual tokens in one run, text after them
        row.copy_(torch.cat([row[row == IMAGE], row[row != IMAGE]]))
    layout = adapter_for(model).locate(batch.inputs)
    assert layout is not None
    assert groups_of(layout) == batch.groups


def test_images_and_videos_of_one_prompt_keep_their_order() -> None:
    model = model_of("qwen2_vl")
    adapter = adapter_for(model)
    ids = torch.tensor([[5] + [VIDEO] * 12 + [IMAGE] * 8 + [6] + [IMAGE] * 16 + [VIDEO] * 12])
    call = {
        "input_ids": ids,
        "image_grid_thw": torch.tensor([[1, 4, 8], [1, 8, 8]]),
        "video_grid_thw": torch.tensor([[3, 4, 4], [3, 4, 4]]),
    }
    layout = adapter.locate(call)
    assert layout is not None
    assert groups_of(layout) == [[12, 8, 16, 12]]
    grid = adapter.grid(call, layout)
    assert grid is not None
    assert grid[0, 13:21].tolist() == [[0, r, c] for r in range(2) for c in range(4)]


def test_items_are_assigned_to_samples() -> None:
    assert assign_items([2, 3, 5], [5, 5]) == [[0, 1], [2]]
    assert assign_items([2, 3], [0, 5]) == [[], [0, 1]]
    assert assign_items([2, 0, 3], [2, 3]) == [[0], [2]]
    assert assign_items([2, 4], [5]) is None
    assert assign_items([2, 3], [2]) is None
    # every tensor repeated row by row, as `generate` of transformers 5.17 does it for two beams
    assert assign_items([2, 2, 3, 3, 4, 4], [5, 5, 4, 4]) == [[0, 2], [1, 3], [4], [5]]


# ---- grids, written by hand ---


def image_grid(name: str, variant: str = "image", padding: Any = "none") -> list[list[list[int]]]:
    """The grid of the visual tokens of every sample."""
    case, model = CASES[name], model_of(name)
    adapter = adapter_for(model)
    inputs = case.batch(model, 2, padding, variant=variant).inputs  # type: ignore[arg-type]
    layout = adapter.locate(inputs)
    assert layout is not None
    grid = adapter.grid(inputs, layout)
    assert grid is not None
    assert grid.dtype == torch.long
    assert bool((grid[~layout.mask] == -1).all())
    return [row[mask].tolist() for row, mask in zip(grid, layout.mask, strict=True)]


def cells(rows: int, columns: int, frame: int = 0) -> list[list[int]]:
    return [[frame, row, column] for row in range(rows) for column in range(columns)]


def lines(rows: int, columns: int, frame: int = 1) -> list[list[int]]:
    """Rows that each end with a newline."""
    return [
        cell for row in range(rows) for cell in [*[[frame, row, column] for column in range(columns)], [-1, -1, -1]]
    ]


BREAK = [-1, -1, -1]
GRIDS: dict[tuple[str, str], list[list[list[int]]]] = {
    **{(name, "image"): [cells(4, 4)] * 2 for name in ("llava", "video_llava", "gemma3", "paligemma", "vipllava")},
    **{(name, "multi"): [cells(4, 4) * 2] * 2 for name in ("llava", "gemma3", "paligemma", "smolvlm", "idefics3")},
    **{(name, "image"): [cells(4, 4)] * 2 for name in ("internvl", "smolvlm", "idefics3", "mistral3")},
    # 64 x 64: 2 x 2 tiles of 4 x 4
    **{(name, "image"): [cells(4, 4) + lines(8, 8)] * 2 for name in ("llava_next", "llava_onevision")},
    # 32 x 64 is 1 x 2 tiles; 60 x 30 in 2 x 1 tiles, scaled to 64 x 32: no padding is left
    ("llava_next", "ragged"): [
        cells(4, 4) + lines(4, 8) + cells(4, 4) + lines(8, 4),
        cells(4, 4) + lines(8, 8),
    ],
    ("llava_onevision", "video"): [[cell for t in range(3) for cell in cells(2, 2, t)] + [BREAK]] * 2,
    ("llava_next_video", "video"): [[cell for t in range(3) for cell in cells(2, 2, t)]] * 2,
    ("video_llava", "video"): [[cell for t in range(4) for cell in [BREAK, *cells(4, 4, t)]]] * 2,
    **{(name, "image"): [cells(4, 4)] * 2 for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")},
    **{(name, "ragged"): [cells(2, 4) + cells(4, 6), cells(4, 4)] for name in ("qwen2_vl", "qwen3_vl")},
    **{
        (name, "video"): [[cell for t in range(3) for cell in cells(2, 2, t)]] * 2
        for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
    },
    ("internvl", "ragged"): [
        cells(4, 4, 0) + cells(4, 4, 1) + cells(4, 4, 0) + cells(4, 4, 1) + cells(4, 4, 2),
        cells(4, 4),
    ],
    **{(name, "ragged"): [cells(2, 4) + cells(4, 6), cells(4, 4)] for name in ("mistral3", "lighton_ocr")},
}


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name, variant", GRIDS)
def test_grids(name: str, variant: str, padding: Any) -> None:
    assert image_grid(name, variant, padding) == GRIDS[name, variant]


def test_anyres_grid_without_the_padding() -> None:
    model = model_of("llava_next")
    adapter = adapter_for(model)
    # 40 x 64 in 2 x 2 tiles of 4 x 4 tokens: 5 of 8 rows are image, rounded to an even number of padding rows
    values = torch.zeros(1, 5, 3, 32, 32)
    sizes = torch.tensor([[40, 64]])
    features = model.model.get_image_features(values, image_sizes=sizes, return_dict=True).pooler_output[0]
    call = {"input_ids": torch.full((1, len(features)), IMAGE), "pixel_values": values, "image_sizes": sizes}
    layout = adapter.locate(call)
    assert layout is not None
    grid = adapter.grid(call, layout)
    assert grid is not None
    assert grid[0].tolist() == cells(4, 4) + lines(6, 8)
    assert SIZES[0] == [64, 64]


def test_onevision_scales_down_images_of_too_many_tiles() -> None:
    case = CASES["llava_onevision"]
    model = case.build("eager")
    model.config.vision_aspect_ratio = "anyres_max_1"
    adapter = adapter_for(model)
    values, sizes = torch.zeros(1, 5, 3, 32, 32), torch.tensor([[64, 64]])
    features = model.model.get_image_features(values, image_sizes=sizes, return_dict=True).pooler_output[0]
    call = {"input_ids": torch.full((1, len(features)), IMAGE), "pixel_values": values, "image_sizes": sizes}
    layout = adapter.locate(call)
    assert layout is not None
    grid = adapter.grid(call, layout)
    assert grid is not None
    assert grid[0].tolist() == cells(4, 4) + lines(4, 4)


def test_onevision_gives_several_images_one_tile_each() -> None:
    model = model_of("llava_onevision")
    adapter = adapter_for(model)
    call = {
        "input_ids": torch.full((1, 34), IMAGE),
        "pixel_values": torch.zeros(2, 5, 3, 32, 32),
        "image_sizes": torch.tensor([[64, 64], [64, 64]]),
        "batch_num_images": torch.tensor([2]),
    }
    layout = adapter.locate(call)
    assert layout is not None
    assert groups_of(layout) == [[17, 17]]
    grid = adapter.grid(call, layout)
    assert grid is not None
    assert grid[0].tolist() == [*cells(4, 4), BREAK] * 2


# ---- tiles of Idefics 3 and SmolVLM ---

FENCE, OVERVIEW, LINE = 154, 155, 13


def tile(row: int, column: int) -> list[int]:
    return [FENCE, 160 + 6 * row + column, *[IMAGE] * 16]


def overview() -> list[int]:
    return [FENCE, OVERVIEW, *[IMAGE] * 16, FENCE]


def tiled(rows: int, columns: int) -> list[int]:
    """An image as the processor writes it."""
    out = []
    for row in range(rows):
        out += [token for column in range(columns) for token in tile(row, column)] + [LINE]
    return [*out[:-1], LINE + 1, *overview()] if rows else overview()


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_tiles_of_one_image_are_one_group(name: str) -> None:
    adapter = adapter_for(model_of(name))
    first = [5, 6, *tiled(2, 3), *tiled(0, 0), *tiled(1, 2), 7]
    second = [0] * (len(first) - len(tiled(3, 1)) - 4) + [5, *tiled(3, 1), 8, 9, 9]
    call = {"input_ids": torch.tensor([first, second])}
    layout = adapter.locate(call)
    assert layout is not None
    assert groups_of(layout) == [[16 * 7, 16, 16 * 3], [16 * 4]]
    grid = adapter.grid(call, layout)
    assert grid is not None
    found = grid[0][layout.groups[0] == 0].tolist()
    assert found[16 * 6 :] == cells(4, 4)
    # tile (1, 2): rows 4 to 7, columns 8 to 11 of the image put together
    assert found[16 * 5 : 16 * 6] == [[1, 4 + row, 8 + column] for row in range(4) for column in range(4)]
    assert grid[0][layout.groups[0] == 1].tolist() == cells(4, 4)
    assert grid[1][layout.groups[1] == 0].tolist()[32:36] == [[1, 8, column] for column in range(4)]


def test_runs_that_no_processor_wrote_are_images() -> None:
    adapter = adapter_for(model_of("smolvlm"))
    call = {"input_ids": torch.tensor([[5, 6, *[IMAGE] * 16, 7, 8, *[IMAGE] * 16, 9, 10, 6, *[IMAGE] * 16]])}
    layout = adapter.locate(call)
    assert layout is not None
    assert groups_of(layout) == [[16, 16, 16]]


# ---- signals ---


class Observed:
    """One forward of a model in eager mode: what its layers got, what an adapter reads, what attention was given."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch, padding: Any = "left", variant: Any = "ragged"):
        self.model = model_of(name)
        self.adapter: Adapter = adapter_for(self.model)
        self.inputs = CASES[name].batch(self.model, 2, padding, variant=variant).inputs
        layout = self.adapter.locate(self.inputs)
        assert layout is not None
        self.layout = layout
        self.arguments: dict[int, dict[str, Any]] = {}
        self.states: dict[tuple[int, str], Tensor] = {}
        self.entering: dict[int, Tensor] = {}
        self.weights: dict[int, Tensor] = {}
        self.given: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        modules = {id(self.adapter.attention(i)): i for i in range(self.adapter.num_layers)}
        source = sys.modules[type(self.adapter.attention(0)).__module__]
        eager = source.eager_attention_forward

        def spy(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            out = eager(module, query, key, value, *args, **kwargs)
            if id(module) in modules:
                self.given[modules[id(module)]] = (query, key, value)
                self.weights[modules[id(module)]] = out[1]
            return out

        monkeypatch.setattr(source, "eager_attention_forward", spy)
        self.readable = [i for i in range(self.adapter.num_layers) if self._is_readable(i)]
        handles = [hook for layer in self.readable for hook in self._watch(layer)]
        with torch.no_grad():
            self.model(**self.inputs)
        for handle in handles:
            handle.remove()

    def _is_readable(self, layer: int) -> bool:
        """Not a layer that may not be pruned anyway: sparse, or without keys of its own."""
        shared = getattr(self.adapter.attention(layer), "is_kv_shared_layer", False)
        return self.adapter.layer_type(layer) in EXACT_TYPES and not shared

    def _watch(self, layer: int) -> list[Any]:
        def arguments(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self.arguments[layer] = kwargs

        def entering(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self.entering[layer] = args[0] if args else kwargs["hidden_states"]

        def states(name: str, read: Callable[[Tensor], Tensor]) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Tensor) -> None:
                self.states[layer, name] = read(output)

            return hook

        attention = self.adapter.attention(layer)
        assert attention is not None
        found = self.adapter.projections(layer, frozenset({"query", "key", "value"}))
        return [
            self.adapter.layers[layer].register_forward_pre_hook(arguments, with_kwargs=True),
            attention.register_forward_pre_hook(entering, with_kwargs=True),
            *[p.module.register_forward_hook(states(name, p.read)) for name, p in found.items()],
        ]

    def probe(self, layer: int) -> AttentionProbe:
        """The probe that the engine would make."""
        rotate = self.adapter.rotary(layer)
        cos, sin = self.arguments[layer]["position_embeddings"]
        mask = self.arguments[layer]["attention_mask"]
        attention: Any = self.adapter.attention(layer)
        samples = torch.arange(len(self.layout.mask))[:, None]

        def rows_of(angles: Tensor, index: Tensor) -> Tensor:
            if angles.dim() == 3:
                return angles.expand(len(index), -1, -1)[samples, index]
            return angles[:, samples, index]

        def rotated(query: Tensor, key: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            return rotate(query, rows_of(cos, index), rows_of(sin, index)), rotate(key, cos, sin)

        def visible(index: Tensor) -> Tensor:
            found: Tensor = mask.expand(len(index), *mask.shape[1:])[samples, 0, index]
            return found if found.dtype == torch.bool else found > -1e30

        return AttentionProbe(
            partial(rows_at, self.states[layer, "query"]),
            self.states[layer, "key"],
            rotated,
            visible,
            attention.scaling,
            getattr(attention, "attn_logit_softcapping", None),
        )


@pytest.mark.parametrize("name", READABLE)
def test_projections_are_what_attention_is_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Observed(name, monkeypatch)
    for layer in seen.readable:
        query, key, value = (state.transpose(1, 2) for state in seen.given[layer])
        assert torch.equal(seen.states[layer, "value"], value)
        # a rotation keeps the products of a token's heads with each other, but for a factor (YaRN, scaled queries)
        for read, given in ((seen.states[layer, "query"], query), (seen.states[layer, "key"], key)):
            assert read.shape == given.shape
            close(gram(read), gram(given), 1e-5)
        if name in NO_ROWS:
            continue
        cos, sin = seen.arguments[layer]["position_embeddings"]
        rotate = seen.adapter.rotary(layer)
        for which, given in (("query", query), ("key", key)):
            close(rotate(seen.states[layer, which].transpose(1, 2), cos, sin), given.transpose(1, 2), 1e-6)


@pytest.mark.parametrize(
    "name, norm", [("llava", 0), ("qwen2_vl", 0), ("qwen3_vl", 1), ("gemma3", 1), ("llava_olmo2", 2)]
)
def test_projections_computed_by_hand(name: str, norm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Observed(name, monkeypatch)
    attention: Any = seen.adapter.attention(1)
    for which, heads in (("query", 4), ("key", 2), ("value", 2)):
        linear = getattr(attention, f"{which[0]}_proj")
        states = F.linear(seen.entering[1], linear.weight, linear.bias)
        if norm != 2:
            states = states.reshape(*states.shape[:2], heads, 16)
        if norm and which != "value":
            weight = getattr(attention, f"{which[0]}_norm").weight + (1 if name == "gemma3" else 0)
            states = states * (states.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight
        close(seen.states[1, which], states.reshape(*states.shape[:2], heads, 16), 1e-4)


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name", sorted(set(READABLE) - NO_ROWS))
def test_attention_rows(name: str, padding: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Observed(name, monkeypatch, padding)
    width = seen.layout.mask.shape[1]
    last_visual = seen.layout.mask.int().cumsum(1).argmax(1)
    index = torch.stack(
        [torch.full_like(last_visual, width - 1), last_visual, torch.full_like(last_visual, width - 4)], 1
    )
    for layer in seen.readable:
        rows = seen.probe(layer).rows(index)
        want = seen.weights[layer].gather(2, index[:, None, :, None].expand(-1, rows.shape[1], -1, width))
        close(rows, want, 1e-5)


def gram(states: Tensor) -> Tensor:
    """Products of each token's heads with each other, of trace 1."""
    products = states @ states.mT
    return products / products.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]


def close(got: Tensor, want: Tensor, allowed: float) -> None:
    assert got.shape == want.shape
    assert float((got - want).detach().abs().max()) <= allowed * max(1.0, float(want.detach().abs().max()))


# ---- which adapter ---


def test_families_without_an_adapter_are_generic() -> None:
    assert isinstance(adapter_for(model_of("aya_vision")), GenericAdapter)
    assert adapter_for(model_of("aya_vision")).name == "aya_vision"
    assert not isinstance(adapter_for(model_of("smolvlm")), GenericAdapter)
