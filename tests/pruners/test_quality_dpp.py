"""A DPP with any scorer as quality against a greedy choice by determinants in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.pruners.test_dpp import kernel_of, literal
from tests.support.literal import record
from tokenprune.errors import ConfigError
from tokenprune.ops.dpp import standard_weights
from tokenprune.pruners.quality_dpp import QualityDpp
from tokenprune.scorers.annotation import Annotation
from tokenprune.scorers.energy import Energy
from tokenprune.scorers.matrix_entropy import MatrixEntropy
from tokenprune.testing import TowerTensors, make_context


def literal_weights(scores: list[float], weight: float) -> list[float]:
    mean = math.fsum(scores) / len(scores)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    return [math.exp(weight * (score - mean) / deviation) if deviation > 1e-9 else 1.0 for score in scores]


def tower(features: Tensor) -> TowerTensors:
    """A layer of the tower of which only the features are read."""
    nothing = torch.zeros(features.shape[:2])
    return TowerTensors(nothing, nothing, features, features)


def kept(features: Tensor, scores: Tensor, count: int, weight: float = 0.3) -> list[int]:
    ctx = make_context(
        torch.ones_like(features)[None],  # equal states in the language model: they are not what is compared
        keep=count,
        tower={-1: tower(features[None])},
        annotations={"quality": scores[None]},
    )
    selection = QualityDpp(quality=Annotation(field="quality"), weight=weight).select(ctx)
    return [int(place) for place in selection.keep[0].nonzero()[:, 0]]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.5])
@pytest.mark.parametrize("seed", range(3))
def test_random_tokens(seed: int, weight: float) -> None:
    noise = torch.Generator().manual_seed(seed)
    features, scores = torch.randn(14, 20, generator=noise), 50 + 7 * torch.randn(14, generator=noise)
    kernel = kernel_of(features, literal_weights(scores.tolist(), weight))
    for count in (1, 4, 9, 14):
        assert kept(features, scores, count, weight) == literal(kernel, count)


def test_the_unit_of_the_scores_does_not_matter() -> None:
    noise = torch.Generator().manual_seed(0)
    features, scores = torch.randn(14, 20, generator=noise), torch.randn(14, generator=noise)
    assert kept(features, scores, 5, 1.0) == kept(features, 1000 * scores - 3e4, 5, 1.0)
    assert kept(features, scores, 5, 1.0) != kept(features, -scores, 5, 1.0)


def test_equal_scores_leave_diversity_alone() -> None:
    features = torch.randn(14, 20, generator=torch.Generator().manual_seed(0))
    diverse = kept(features, torch.randn(14), 5, 0.0)
    assert kept(features, torch.full((14,), 0.1), 5, 3.0) == diverse


def test_weights_by_hand() -> None:
    valid = torch.tensor([[True, True, True, False]])
    weights = standard_weights(torch.tensor([[1.0, 2.0, 3.0, 99.0]]), valid, 0.5)
    z = math.sqrt(1.5)  # one over the deviation, the root of 2/3
    assert weights.tolist()[0] == pytest.approx([math.exp(-0.5 * z), 1.0, math.exp(0.5 * z), 0.0], abs=1e-6)
    assert standard_weights(torch.full((1, 4), 7.0), valid, 9.0).tolist() == [[1.0, 1.0, 1.0, 0.0]]


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    scores, valid = torch.empty(2, 9, device="meta"), torch.ones(2, 9, dtype=torch.bool, device="meta")
    assert standard_weights(scores, valid, 0.3).shape == (2, 9)


def method(tokens: int, layer: int = 0, **fields: Any) -> dict[str, Any]:
    return {
        "layers": {"name": "fixed", "layers": [layer]},
        "pruner": {"name": "quality_dpp", "quality": {"name": "norm", "source": "hidden"}, "weight": 0.7, **fields},
        "budget": {"name": "keep_count", "tokens": tokens},
    }


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize(
    ("name", "variant"), [("llava", "image"), ("llava", "multi"), ("llava_next", "ragged"), ("qwen2_5_vl", "multi")]
)
def test_the_engine_keeps_what_the_definition_says(name: str, variant: Any, layer: int) -> None:
    """With the hidden states of the stage, image by image, padding and several images included."""
    recording = record(name, variant, batch=3)

    def choose(sample: int, number: int, count: int) -> list[int]:
        states = recording.layer_inputs[layer][sample, recording.image_positions[sample][number]]
        return literal(kernel_of(states, literal_weights([float(row.norm()) for row in states], 0.7)), count)

    assert recording.kept(method(7, layer, tower_layer=None)) == recording.image_by_image(7, choose)


def test_the_standard_way_reads_the_tower_and_no_text() -> None:
    """Another text around the same picture changes nothing."""
    found = tp.load_method("entropyprune-tower").pruner
    assert found == QualityDpp(quality=MatrixEntropy(source="hidden", normalization="image", tower_layer=-1))
    assert found.vision_layers == {-1}
    assert found.needs == {"hidden"}
    recording = record("llava", "image")
    named = tp.load_method("entropyprune-tower", keep_tokens=5).model_dump(mode="json", exclude_none=True)
    first = recording.kept(named)
    for sample, positions in enumerate(recording.text_positions):
        recording.inputs["input_ids"][sample, positions] = 9
    assert recording.kept(named) == first


def test_the_null_models_differ_in_the_quality_alone() -> None:
    entropy, energy, none = (
        tp.load_method(name).pruner for name in ("entropyprune-tower", "energy-diversity", "diversity")
    )
    assert isinstance(entropy, QualityDpp)
    assert energy == entropy.model_copy(update={"quality": Energy(source="hidden", tower_layer=-1)})
    assert none == energy.model_copy(update={"weight": 0.0})


def test_a_weight_below_zero_is_an_error() -> None:
    with pytest.raises(ConfigError, match="greater than or equal to 0"):
        QualityDpp(quality=Annotation(field="quality"), weight=-0.1)
