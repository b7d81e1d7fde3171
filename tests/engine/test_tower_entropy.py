"""The entropy behind the layers of the vision tower, by an eigenvalue at a time, for every sample of every batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from tests.adapters.test_vision_anyres import packed
from tests.adapters.test_vision_families import built
from tests.support.literal import record
from tests.support.tiny import CASES
from tests.support.tiny.core import Variant
from tests.support.tower import features, output_of
from tokenprune.adapters import adapter_for
from tokenprune.adapters.llava import LlavaAdapter
from tokenprune.engine import measure_entropy
from tokenprune.engine.trials.tower_entropy import TowerEntropy
from tokenprune.errors import UnsupportedFeatureError, UnsupportedModelError
from tokenprune.ops.entropy import state_entropy

#: Families whose tower can be read.
READ = [*(name for name, case in CASES.items() if case.core), "paligemma2", "vipllava", "lighton_ocr", "llava_phi"]


def literal(tokens: Sequence[Tensor]) -> float:
    """Matrix entropy of some tokens' states."""
    x = torch.stack([token.double() for token in tokens])
    x = x - x.mean(0)
    rho = x @ x.T
    values = torch.linalg.eigvals(rho / rho.trace()).real.tolist()
    return -sum(value * math.log(value) for value in values if value > 1e-10)


def measured(name: str, inputs: dict[str, Tensor]) -> tuple[tuple[float, ...], ...]:
    return measure_entropy(CASES[name].build(), [inputs], cache=False).tower


# ---- the number ----


@pytest.mark.parametrize("name", ["vipllava", "llava"])
@pytest.mark.parametrize("variant", ["image", "multi", "ragged"])
def test_every_patch_of_all_images_of_a_sample_counts(name: str, variant: Variant) -> None:
    recording = record(name, variant, batch=3)
    curves = measured(name, recording.inputs)
    depth = {"vipllava": 2, "llava": 1}[name]  # LLaVA does not use the last layer of its tower
    assert [len(curve) for curve in curves] == [depth] * 3
    for layer in range(depth):
        for curve, images in zip(curves, features(recording, name, layer), strict=True):
            assert curve[layer] == pytest.approx(literal([state for image in images for state in image]), abs=1e-5)


@pytest.mark.parametrize("variant", ["image", "video"])
def test_merged_patches_count_as_their_mean(variant: Variant) -> None:
    """Qwen2-VL: four patches in a row become a token."""
    model: Any = CASES["qwen2_vl"].build()
    inputs = CASES["qwen2_vl"].batch(model, 2, "left", seed=3, variant=variant).inputs
    curves = measured("qwen2_vl", inputs)
    for layer in range(2):
        merged = output_of(model, model.model.visual.blocks[layer], inputs).unflatten(0, (-1, 4)).mean(1)
        for sample, tokens in enumerate(merged.chunk(2)):
            assert curves[sample][layer] == pytest.approx(literal(list(tokens)), abs=1e-5)


def test_pooled_patches_count_as_their_mean() -> None:
    """Gemma 3 pools squares of patches."""
    model: Any = CASES["gemma3"].build()
    inputs = CASES["gemma3"].batch(model, 2, "none", seed=3).inputs
    curves = measured("gemma3", inputs)
    tokens = int(model.config.mm_tokens_per_image)
    for layer in range(2):
        tower = model.model.vision_tower
        states = output_of(model, getattr(tower, "vision_model", tower).encoder.layers[layer], inputs)
        side = int(states.shape[1] ** 0.5)
        grid = states.transpose(1, 2).unflatten(-1, (side, side))
        pooled = avg_pool2d(grid, side // int(tokens**0.5)).flatten(2).transpose(1, 2)
        for sample in range(2):
            assert curves[sample][layer] == pytest.approx(literal(list(pooled[sample])), abs=1e-5)


@pytest.mark.parametrize("variant", ["image", "multi"])
def test_newlines_do_not_count(variant: Variant) -> None:
    """They are visual tokens of the prompt that no patch became."""
    model: Any = built("llava_next", "eager")
    batch = CASES["llava_next"].batch(model, 1, "none", seed=3, variant=variant)
    states = packed(model, batch.inputs, 0).features
    patches = [state for state in states if bool((state != 0).any())]
    assert len(patches) < len(states) == sum(batch.groups[0])
    (curve,) = measure_entropy(model, [batch.inputs], cache=False).tower
    assert curve == pytest.approx([literal(patches)], abs=1e-5)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_onevision", "video_llava", "llava_next_video"])
def test_nobody_in_the_batch_matters(name: str) -> None:
    """Images, videos and both in a sample: the tower runs once for all images, and once for all videos."""
    model = CASES[name].build()
    image, video = ("image", 0), ("video", 0)
    batch, alone = CASES[name].mixed(model, [[image], [video], [image, video], [image, image]], seed=2)
    together = measure_entropy(model, [batch.inputs], cache=False)
    single = measure_entropy(model, [sample.inputs for sample in alone], cache=False)
    assert not together.tower_refused
    for one, other in zip(together.tower, single.tower, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    for one, other in zip(together.curves, single.curves, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("name", READ)
@torch.no_grad()
def test_the_projector_makes_what_enters_layer_0(name: str) -> None:
    """So it needs no number of its own: the decoder gets its output, and at most scales it before layer 0."""
    model: Any = CASES[name].build()
    inputs = CASES[name].batch(model, 2, "none", seed=3).inputs
    adapter = adapter_for(model)
    entered: list[Tensor] = []
    handle = adapter.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: entered.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    found = measure_entropy(model, [inputs], cache=False)
    handle.remove()
    layout = adapter.locate(inputs)
    assert layout is not None
    assert found.tower
    for sample, embeds in enumerate(entered[0]):
        assert found.curves[sample][0] == pytest.approx(float(state_entropy(embeds[layout.mask[sample]])), abs=1e-5)


# ---- what is held, and what stays on the model ----


@torch.no_grad()
def test_states_are_let_go_as_the_tower_runs() -> None:
    model: Any = CASES["qwen3_vl"].build()
    inputs = CASES["qwen3_vl"].batch(model, 2, "none", seed=3).inputs
    adapter = adapter_for(model)
    layout = adapter.locate(inputs)
    assert layout is not None
    tower = TowerEntropy(adapter, inputs, layout)
    held: list[set[int]] = []

    def look(*_: Any) -> None:
        held.append({layer for run in tower._call.tower_runs for layer, _ in run.states})

    handles = [block.mlp.register_forward_pre_hook(look) for block in model.model.visual.blocks]
    handles.append(model.get_decoder().layers[0].register_forward_pre_hook(look))
    with tower.watching():
        model(**inputs)
    for handle in handles:
        handle.remove()
    assert held == [{0}, {1}, {2}, set()]
    curves = tower.curves()
    assert curves is not None
    assert curves.shape == (2, 3)
    assert curves.dtype == torch.float64


def test_nothing_stays_on_the_model() -> None:
    """Also where the forward fails."""
    model: Any = CASES["llava"].build()
    inputs = CASES["llava"].batch(model, 1, "none", seed=3).inputs

    def hooks() -> int:
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())

    with torch.no_grad():
        model(**inputs)  # transformers puts hooks of its own on the first time
    before, attributes = hooks(), set(vars(model.model)) | set(vars(model))
    measure_entropy(model, [inputs], cache=False)
    with pytest.raises(Exception):  # noqa: B017
        measure_entropy(model, [{**inputs, "attention_mask": torch.ones(7, 7, 7)}], cache=False)
    assert hooks() == before
    assert set(vars(model.model)) | set(vars(model)) == attributes


# ---- towers that cannot be read ----


def test_a_tower_that_nobody_describes_is_a_reason() -> None:
    model = CASES["glm4v"].build()
    inputs = CASES["glm4v"].batch(model, 2, "none", seed=3).inputs
    found = measure_entropy(model, [inputs], cache=False)
    assert found.tower == ()
    assert found.tower_refused == (
        "the adapter of 'glm4v' does not say how its vision tower's patches become visual tokens"
    )
    assert len(found.curves) == 2


def test_a_call_that_takes_other_features_is_a_reason() -> None:
    """One sample without a curve is enough: the curves are those of all samples."""
    model = CASES["llava"].build()
    good = CASES["llava"].batch(model, 1, "none", seed=3).inputs
    other = {**good, "vision_feature_layer": -1}
    found = measure_entropy(model, [good, other], cache=False)
    assert len(found.curves) == 2
    assert found.tower == ()
    assert found.tower_refused == "a calibration sample names its own vision_feature_layer"


@pytest.mark.parametrize(("named", "depth"), [(-1, 2), (-2, 1), (1, 1), (2, 2), ([-2, -1], 2), ([1, -2], 1)])
def test_the_path_ends_where_features_are_taken(named: Any, depth: int) -> None:
    model: Any = CASES["llava"].build()
    model.config.vision_feature_layer = named
    assert LlavaAdapter(model).tower_depth() == depth


def test_a_path_without_a_layer_of_the_tower_is_refused() -> None:
    model: Any = CASES["llava"].build()
    model.config.vision_feature_layer = 0
    with pytest.raises(UnsupportedModelError, match="no layer of its vision tower leads to the language model"):
        LlavaAdapter(model).tower_depth()


def test_states_that_are_not_finite_name_the_layer_of_the_tower() -> None:
    model: Any = CASES["vipllava"].build()
    tower = model.model.vision_tower
    with torch.no_grad():
        getattr(tower, "vision_model", tower).encoder.layers[1].mlp.fc2.bias.fill_(float("nan"))
    inputs = CASES["vipllava"].batch(model, 1, "none").inputs
    with pytest.raises(UnsupportedFeatureError, match="NaN or infinity behind layer 1 of the vision tower"):
        measure_entropy(model, [inputs], cache=False)
