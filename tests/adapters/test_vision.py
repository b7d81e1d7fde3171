"""Signals of the vision tower, against the attention maps that the tower itself returns when asked."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, LlavaForConditionalGeneration

import tokenprune as tp
from tests.support.looking import looking
from tests.support.tiny import CASES
from tests.support.tiny.core import TRANSFORMERS
from tokenprune.adapters import adapter_for
from tokenprune.errors import LayerError, ScoreError, UnsupportedModelError
from tokenprune.ops.vision import TowerLayer
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.vision_attention import VisionAttention

LLAVA = CASES["llava"]


def tower_maps(model: torch.nn.Module, pixels: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return model.model.vision_tower(pixels, output_attentions=True).attentions  # type: ignore[operator, union-attr]


def test_one_layer_is_the_map() -> None:
    """Class row and column mean, written out from softmax(q k^T)."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, 9, 3, 4, generator=generator) for _ in range(2))
    for classes in (1, 0):
        layer = TowerLayer(query, key, classes, 0.5)
        for image in range(2):
            expected = [0.0] * (9 - classes)
            rows = range(1) if classes else range(9)
            for head in range(3):
                for row in rows:
                    logits = [0.5 * float(query[image, row, head] @ key[image, other, head]) for other in range(9)]
                    weights = torch.tensor(logits, dtype=torch.float64).softmax(0)
                    for patch in range(9 - classes):
                        expected[patch] += float(weights[patch + classes]) / 3 / len(rows)
            assert layer.attention[image].tolist() == pytest.approx(expected, abs=1e-6)
        assert torch.allclose(layer.mean_key, key[:, classes:].mean(2))


def test_long_rows_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(1, 20, 2, 4), torch.randn(1, 20, 2, 4)
    whole = TowerLayer(query, key, 0, 1.0).attention
    monkeypatch.setattr("tokenprune.ops.vision._ROWS", 3)
    assert torch.allclose(TowerLayer(query, key, 0, 1.0).attention, whole, atol=1e-6)


@pytest.mark.parametrize("variant", ["image", "multi", "ragged"])
@pytest.mark.parametrize("number", [-2, -1, 0])
@pytest.mark.parametrize("stage", [0, 2])
def test_tokens_get_what_their_patches_get(variant: str, number: int, stage: int) -> None:
    """All images of a batch, left padding, before the language model and inside it."""
    model = LLAVA.build("eager")
    inputs = LLAVA.batch(model, 3, "left", variant=variant).inputs  # type: ignore[arg-type]
    pruner, seen = looking(VisionAttention(layer=number), lambda ctx: ctx)
    how = tp.Method(
        layers={"name": "fixed", "layers": [stage]},
        pruner=pruner,
        budget={"name": "keep_ratio", "ratio": 0.4},
    )
    with torch.no_grad(), tp.apply(model, how) as run:
        model(**inputs)
        found = seen[0].vision(number)
        attention, key = found.attention, found.key
    rows = tower_maps(model, inputs["pixel_values"])[number].double().mean(1)[:, 0, 1:]  # mean of heads, class row
    flat = rows.flatten().tolist()
    place = 0
    for sample in range(3):
        visual = (inputs["input_ids"][sample] == 150).nonzero()[:, 0].tolist()
        expected = flat[place : place + len(visual)]
        place += len(visual)
        assert attention[sample, : len(visual)].tolist() == pytest.approx(expected, abs=1e-6)
        assert not attention[sample, len(visual) :].any()
        if variant == "image":
            best = sorted(range(len(visual)), key=lambda i: (-expected[i], i))[: run.stages[0].after[sample]]
            kept = [int(p) for p in run.stages[0].kept[sample] if p >= 0]
            assert kept == sorted(visual[i] for i in best)
    assert place == len(flat)
    assert key.shape[:2] == attention.shape


@pytest.mark.parametrize("variant", ["image", "multi"])
def test_features_are_what_the_projector_gets(variant: str) -> None:
    """Of the layer from which LLaVA takes its features, to the bit."""
    model = LLAVA.build("sdpa")
    inputs = LLAVA.batch(model, 2, "left", variant=variant).inputs  # type: ignore[arg-type]
    projected: list[Tensor] = []
    layer = model.config.vision_feature_layer
    pruner, seen = looking(VisionAttention(layer=layer), lambda ctx: ctx)
    how = tp.Method(
        layers={"name": "fixed", "layers": [0]},
        pruner=pruner,
        budget={"name": "keep_ratio", "ratio": 0.4},
    )
    hook = model.model.multi_modal_projector.register_forward_pre_hook(lambda module, args: projected.append(args[0]))
    with torch.no_grad(), tp.apply(model, how):
        model(**inputs)
        found = seen[0].vision(layer).features
    hook.remove()
    assert torch.equal(found[seen[0].visual_mask], projected[0].flatten(0, 1))


@pytest.mark.parametrize("name", ["llava", "llava_qwen3", "llava_next"])
def test_the_projector_makes_of_features_what_enters_layer_0(name: str) -> None:
    """To the bit, patch by patch; row separators (LLaVA-NeXT) have no features."""
    case = CASES[name]
    model = case.build("sdpa")
    pruner, seen = looking(VisionAttention(layer=-2), lambda ctx: ctx)
    how = tp.Method(
        layers={"name": "fixed", "layers": [0]},
        pruner=pruner,
        budget={"name": "keep_ratio", "ratio": 0.4},
    )
    with torch.no_grad(), tp.apply(model, how):
        model(**case.batch(model, 2, "left", variant="image").inputs)
        tower = seen[0].vision(-2)
        assert tower.projector is not None
        is_patch = (tower.features != 0).any(-1)
        assert bool(is_patch.any())
        made, entered = tower.projector(tower.features), seen[0].hidden
    assert torch.allclose(made[is_patch], entered[is_patch], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "layer"), [("llava", -1), ("vipllava", -2), ("llava_onevision", -2), ("qwen2_5_vl", -2), ("gemma3", -2)]
)
def test_no_projector_where_it_gets_something_else(name: str, layer: int) -> None:
    """Another layer, several layers, or a projector that mixes or scales patches."""
    assert adapter_for(CASES[name].build()).projector(layer) is None


@pytest.mark.parametrize("source", [-1, 2, [-2, -1]])
def test_no_projector_where_the_features_are_not_what_leaves_a_layer(source: int | list[int]) -> None:
    """The last layer's states pass a norm in some towers, numbers from the front count the embeddings as layer 0."""
    model = LLAVA.build("sdpa")
    assert adapter_for(model).projector(-2) is not None
    model.config.vision_feature_layer = source
    assert [adapter_for(model).projector(layer) for layer in (-2, -1, 1, 2)] == [None] * 4


def test_a_second_stage_sees_the_right_patches() -> None:
    """Tokens dropped earlier are skipped, not shifted."""
    model = LLAVA.build("eager")
    inputs = LLAVA.batch(model, 2, "left").inputs
    pruner, seen = looking(VisionAttention(layer=-1), lambda ctx: (ctx.positions, ctx.vision(-1).attention))
    how = tp.Method(
        layers={"name": "fixed", "layers": [0, 2]},
        pruner=pruner,
        budget={"name": "keep_schedule", "ratios": [0.5, 0.25]},
    )
    with torch.no_grad(), tp.apply(model, how):
        model(**inputs)
    (before, whole), (after, rest) = seen
    for sample in range(2):
        known = dict(zip(before[sample].tolist(), whole[sample].tolist(), strict=True))
        assert [known[p] for p in after[sample].tolist()] == pytest.approx(rest[sample].tolist())


def test_families_and_layers_that_cannot_serve_are_refused_up_front() -> None:
    how = {"layers": {"name": "fixed", "layers": [0]}, "budget": {"name": "keep_ratio", "ratio": 0.5}}
    for name in ("glm4v", "aya_vision"):
        method = tp.Method(pruner=TopK(scorer=VisionAttention()), **how)  # type: ignore[arg-type]
        with (
            pytest.raises(UnsupportedModelError, match="vision tower's patches"),
            tp.apply(CASES[name].build(), method),
        ):
            pass
    method = tp.Method(pruner=TopK(scorer=VisionAttention(layer=7)), **how)  # type: ignore[arg-type]
    with pytest.raises(LayerError, match="layer 7 of a vision tower of 2 layers"), tp.apply(LLAVA.build(), method):
        pass


@pytest.mark.parametrize("name", ["hiprune", "holov", "prunesid", "scope", "visionzip"])
def test_methods_for_towers_are_refused_where_nobody_reads_the_tower(name: str) -> None:
    with (
        pytest.raises(UnsupportedModelError, match="vision tower's patches"),
        tp.apply(CASES["aya_vision"].build(), tp.load_method(name)),
    ):
        pass


@pytest.mark.parametrize("kind", ["dinov2", "siglip_vision_model"])
def test_other_towers_of_llava(kind: str) -> None:
    """DINOv2 has a class token, SigLIP has none: there every patch's share of all rows counts."""
    if kind == "dinov2" and TRANSFORMERS < (5, 23):
        pytest.skip("its queries and keys have other names there: refused")
    config = copy.deepcopy(LLAVA.build().config)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    tower = AutoConfig.for_model(kind, **size, **({"mlp_ratio": 2} if kind == "dinov2" else {"intermediate_size": 64}))
    config.vision_config = tower
    config.vision_feature_select_strategy = "default" if kind == "dinov2" else "full"
    config.vision_feature_layer = -1
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    ids = torch.tensor([[1, *[150] * 16, 5, 6, 7]] * 2)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(2, 3, 32, 32)}
    pruner, seen = looking(VisionAttention(layer=-1), lambda ctx: ctx.vision(-1).attention)
    how = tp.Method(
        layers={"name": "fixed", "layers": [0]},
        pruner=pruner,
        budget={"name": "keep_count", "tokens": 5},
    )
    with torch.no_grad(), tp.apply(model, how):
        model(**inputs)
    maps = tower_maps(model, inputs["pixel_values"])[-1].mean(1)
    expected = maps[:, 0, 1:] if kind == "dinov2" else maps.mean(1)
    assert torch.allclose(seen[0], expected, atol=1e-6)


@pytest.mark.parametrize("beams", [1, 2, 3])
@pytest.mark.parametrize("variant", ["image", "multi", "ragged"])
def test_generate_keeps_what_a_forward_keeps(variant: str, beams: int) -> None:
    """Transformers 5.23 runs the tower before the model, once for all beams."""
    if beams > 1 and TRANSFORMERS < (5, 23):
        pytest.skip("repeats images one by one, but samples whole")
    model = LLAVA.build()
    inputs = LLAVA.batch(model, 3, "left", variant=variant).inputs  # type: ignore[arg-type]
    how = tp.Method(
        layers={"name": "fixed", "layers": [0]},
        pruner=TopK(scorer=VisionAttention()),
        budget={"name": "keep_ratio", "ratio": 0.4},
    )
    with torch.no_grad(), tp.apply(model, how) as run:
        model(**inputs)
        expected = run.stages[0].kept
        for _ in range(2):  # what the first one saw does not serve the second
            model.generate(**inputs, max_new_tokens=2, do_sample=False, num_beams=beams)
            assert torch.equal(run.stages[0].kept, expected.repeat_interleave(beams, dim=0))
            inputs = {**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}
            model(**inputs)
            expected = run.stages[0].kept


def test_features_that_the_tower_made_elsewhere_are_refused() -> None:
    model = LLAVA.build()
    inputs = LLAVA.batch(model, 2, "left").inputs
    features = model.model.get_image_features(inputs.pop("pixel_values"), return_dict=True)
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        pytest.skip("this version of Transformers takes pixels only")
    how = tp.load_method("vision-attention")
    with torch.no_grad(), tp.apply(model, how), pytest.raises(ScoreError, match="give pixels, not features"):
        model(**inputs, mm_encoder_outputs={"image": features})


@torch.no_grad()
def test_the_tower_of_another_image_is_not_taken_for_the_prompts() -> None:
    """Images encoded by the caller: the tower's latest run may be another image's."""
    model = LLAVA.build()
    inputs = LLAVA.batch(model, 2, "left").inputs
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        pytest.skip("this version of Transformers takes pixels only")
    pixels = inputs.pop("pixel_values")
    with tp.apply(model, tp.load_method("vision-attention")) as run:
        features, _ = (model.get_image_features(shown, return_dict=True) for shown in (pixels, pixels.flip(-1)))
        encoded = {"mm_encoder_outputs": {"image": features}}
        with pytest.raises(ScoreError, match="give pixels, not features"):
            model.generate(**inputs, **encoded, max_new_tokens=2)
        with pytest.raises(ScoreError, match="give pixels, not features"):
            model(**inputs, **encoded)
        model.generate(**inputs, pixel_values=pixels, max_new_tokens=2)
        expected = run.stages[0].kept
        model(**inputs, pixel_values=pixels)
        assert torch.equal(run.stages[0].kept, expected)
