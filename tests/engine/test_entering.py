"""Attention rows of layer K itself, on the states that enter it, against the map that the unpruned layer K computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support import matrix
from tests.support.matrix import model_of
from tests.support.oracle import decoder_layers
from tests.support.tiny import CASES
from tests.support.tiny.core import Padding
from tests.support.tower import eager_maps
from tokenprune.adapters import adapter_for
from tokenprune.adapters.structure import entering_norm
from tokenprune.errors import UnsupportedModelError
from tokenprune.pruners.base import Selection
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.fastv import FastV
from tokenprune.signals.context import PruneContext

# beside the named families: layers without rotary embedding among others with it, attention before every norm
CORE = [*(name for name, case in CASES.items() if case.core), "llava_smollm3", "cohere2_vision", "llava_olmo2"]


class Looks(TopK):
    """Keeps what it has seen: attention of the last token, per stage."""

    seen: Any = []  # noqa: RUF012

    def select(self, ctx: PruneContext) -> Selection:
        type(self).seen.append((ctx.positions, ctx.visual_mask, self.scorer.score(ctx)))
        return super().select(ctx)


def method(layers: list[int], at: str = "entering") -> tp.Method:
    Looks.seen = []
    budget = {"name": "keep_schedule", "ratios": [0.6, 0.3][: len(layers)]}
    return tp.Method(layers={"name": "fixed", "layers": layers}, pruner=Looks(scorer=FastV(at=at)), budget=budget)  # type: ignore[arg-type]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("place", ["0", "middle", "last"])
@pytest.mark.parametrize("name", CORE)
@torch.no_grad()
def test_the_row_is_the_one_that_the_layer_computes(name: str, place: matrix.Layer, attention: str) -> None:
    """Every family: norm, query and key norms, rotary embedding, windows, soft caps, padding."""
    case = CASES[name]
    model: Any = model_of(name, attention)
    layer = matrix.layer_number(model, place)
    inputs = case.batch(model, 3, "left", seed=3, variant="ragged").inputs
    with tp.apply(model, method([layer])):
        model(**inputs)
    eager: Any = model_of(name, "eager")
    module = adapter_for(eager).attention(layer)
    (maps,) = eager_maps(eager, module, inputs)
    rows = maps.mean(1)[:, -1]
    ((positions, mask, score),) = Looks.seen
    expected = rows.gather(1, positions)
    assert float((score.double() - expected)[mask].abs().max()) <= 1e-6
    assert float(expected[mask].max()) > 1e-3


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "internvl"])
@torch.no_grad()
def test_a_second_stage_sees_the_tokens_that_are_left(name: str, padding: Padding) -> None:
    """The scores of stage two are those of a run that is pruned at stage one only, read by the layer before.

    What layer K computes of the states that enter it is what a stage before layer K + 1 reads of layer K.
    """
    case = CASES[name]
    model: Any = model_of(name, "sdpa")
    inputs = case.batch(model, 3, padding, seed=3, variant="image").inputs
    last = len(decoder_layers(model)) - 1
    with tp.apply(model, method([0, last - 1])):
        model(**inputs)
    entering: Tensor = Looks.seen[1][2]
    first = {"name": "keep_schedule", "ratios": [0.6, 0.6, 0.3]}
    three = method([0], "entering")
    how = tp.Method(
        layers={"name": "fixed", "layers": [0, last - 1, last]},
        pruner={
            "name": "stages",
            "pruners": [three.pruner, three.pruner, Looks(scorer=FastV())],
        },
        budget=first,
    )
    with tp.apply(model, how):
        model(**inputs)
    assert torch.allclose(Looks.seen[-1][2], entering, atol=1e-6)


@torch.no_grad()
def test_before_and_entering_are_different_scores() -> None:
    model: Any = model_of("llava", "sdpa")
    inputs = CASES["llava"].batch(model, 1, seed=3).inputs
    found = []
    for at in ("previous", "entering"):
        with tp.apply(model, method([2], at)):
            model(**inputs)
        found.append(Looks.seen[0][2])
    assert float((found[0] - found[1]).abs().max()) > 1e-3


def test_the_norm_is_the_layers_own() -> None:
    adapter = adapter_for(model_of("llava", "sdpa"))
    layers: Any = adapter.layers
    assert adapter.entering_norm(1) is layers[1].input_layernorm


class Layer(torch.nn.Module):
    """What the layers below have."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.post_norm, self.self_attn, self.factor = (*[torch.nn.Identity() for _ in range(3)], 2.0)


class Scaled(Layer):
    """Does more than normalise before its attention."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.norm(hidden_states * self.factor)
        states: Tensor = self.self_attn(hidden_states)
        return states


class Nested(Layer):
    """Names its attention before its norm."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        states: Tensor = self.self_attn(self.norm(hidden_states))
        return states


class PostNorm(Layer):
    """Normalises after the attention only."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        states: Tensor = self.post_norm(self.self_attn(hidden_states))
        return states


@pytest.mark.parametrize(("layer", "named"), [(Scaled, "norm, factor"), (Nested, "norm")])
def test_layers_that_do_more_are_refused(layer: type[Layer], named: str) -> None:
    message = rf"{layer.__name__}.forward does more .*\({named}\).*at: previous"
    with pytest.raises(UnsupportedModelError, match=message):
        entering_norm(layer())


def test_without_a_norm_in_front_the_states_are_read_as_they_are() -> None:
    states = torch.randn(2, 3)
    assert entering_norm(PostNorm())(states) is states
