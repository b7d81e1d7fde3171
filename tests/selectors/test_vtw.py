"""VTW's layer search against divergences computed from runs whose later layers have the visual columns masked."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.methods.test_pyramiddrop import masked_attention
from tests.support.tiny import CASES
from tokenprune.errors import BusyModelError, LayerError
from tokenprune.selectors.base import SelectorContext
from tokenprune.selectors.vtw import Vtw, divergence


def method(**fields: Any) -> tp.Method:
    return tp.Method.from_dict(
        {
            "layers": {"name": "vtw", **fields},
            "pruner": {"name": "topk", "scorer": {"name": "random"}},
            "budget": {"name": "drop_all"},
        }
    )


def literal(dropped: Tensor, unpruned: Tensor) -> float:
    """KL(dropped || unpruned), term by term."""

    def probabilities(row: list[float]) -> list[float]:
        shifted = [math.exp(value - max(row)) for value in row]
        return [value / sum(shifted) for value in shifted]

    p, q = probabilities(dropped.tolist()), probabilities(unpruned.tolist())
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def hooks(model: Any) -> list[tuple[int, int]]:
    return [(len(module._forward_pre_hooks), len(module._forward_hooks)) for module in model.modules()]


def last(logits: Tensor, mask: Tensor) -> list[Tensor]:
    return [row[int(real.nonzero().max())].double() for row, real in zip(logits, mask, strict=True)]


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_the_first_layer_below_the_threshold(name: str, padding: Any) -> None:
    case = CASES[name]
    model = case.build("eager")
    inputs = case.batch(model, 2, padding, seed=2, variant="ragged" if padding == "left" else "image").inputs
    visual = torch.isin(inputs["input_ids"], torch.tensor(case.visual_ids))
    gone = [row.nonzero()[:, 0].tolist() for row in visual]
    depth = len(model.get_decoder().layers)
    recorded_logits: list[Tensor] = []
    hook = model.register_forward_hook(lambda m, a, output: recorded_logits.append(output.logits))
    masked_attention(model, inputs, {})
    for layer in range(1, depth):
        masked_attention(model, inputs, {layer: gone})
    hook.remove()
    mask = inputs["attention_mask"]
    unpruned = last(recorded_logits[0], mask)
    changes = {
        layer: sum(literal(one, other) for one, other in zip(last(logits, mask), unpruned, strict=True)) / len(unpruned)
        for layer, logits in enumerate(recorded_logits[1:], 1)
    }
    before = hooks(model)  # transformers itself leaves some after output_attentions
    for change in changes.values():
        expected = next(other for other in changes if changes[other] <= change * 1.001)
        with tp.apply(model, method(start=1, threshold=change * 1.001), calibration=[inputs]) as run:
            assert run.choice.layers == (expected,)
            assert f"before layer {expected}" in run.choice.reason
    assert hooks(model) == before
    # two batches of one are the batch of two (llava's pixels go with the samples)
    if name == "llava" and padding == "none":
        halves = [{key: value[i : i + 1] for key, value in inputs.items()} for i in range(2)]
        with tp.apply(model, method(start=1, threshold=changes[depth - 1] * 1.001), calibration=halves) as run:
            layers = run.choice.layers
        with tp.apply(model, method(start=1, threshold=changes[depth - 1] * 1.001), calibration=[inputs]) as run:
            assert run.choice.layers == layers


def test_the_divergence_is_of_the_dropped_to_the_whole() -> None:
    dropped, unpruned = torch.randn(3, 11), 2 * torch.randn(3, 11)
    expected = sum(literal(a, b) for a, b in zip(dropped.double(), unpruned.double(), strict=True)) / 3
    assert divergence(dropped, unpruned) == pytest.approx(expected, rel=1e-9)
    assert divergence(unpruned, dropped) != pytest.approx(expected, rel=1e-3)


def test_published_defaults() -> None:
    named = tp.load_method("vtw")
    assert named.layers == Vtw(start=5, threshold=0.003, fallback=None)
    assert type(named.budget).__name__ == "DropAll"


def test_from_that_layer_on_the_model_sees_text_alone() -> None:
    model = CASES["llava"].build()
    inputs = CASES["llava"].inputs(model)
    with torch.no_grad(), tp.apply(model, method(start=2, threshold=1e9), calibration=[inputs]) as run:
        model(**inputs)
    assert run.stages[0].layer == 2
    assert run.stages[0].after == [0, 0]


def test_what_is_missing_is_said() -> None:
    model = CASES["llava"].build()
    inputs = CASES["llava"].inputs(model)
    depth = len(model.get_decoder().layers)
    calls: list[int] = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(LayerError, match="no calibration samples were given"), tp.apply(model, method(start=1)):
        pass
    with pytest.raises(LayerError, match="start layer 99 is out of range"):
        method(start=99).layers.select(SelectorContext("llava", depth))
    with (
        pytest.raises(LayerError, match="start layer 99 is out of range"),
        tp.apply(model, method(start=99), calibration=[inputs]),
    ):
        pass
    assert not calls, "before any forward"
    hook.remove()
    with (
        pytest.raises(LayerError, match="no layer from 1 on is within 0 nats"),
        tp.apply(model, method(start=1, threshold=0), calibration=[inputs]),
    ):
        pass
    with tp.apply(model, method(start=1, threshold=0, fallback=2), calibration=[inputs]) as run:
        assert run.choice.layers == (2,)
        assert "fell back to layer 2" in run.choice.reason


def test_two_at_once_are_still_refused_while_the_layer_is_searched() -> None:
    model = CASES["llava"].build()
    inputs = CASES["llava"].inputs(model)

    def nested(*_: Any) -> None:
        with pytest.raises(BusyModelError), tp.apply(model, method(start=1, fallback=1)):
            pass

    hook = model.register_forward_hook(nested)
    with tp.apply(model, method(start=1, threshold=1e9), calibration=[inputs]):
        nested()
    hook.remove()
    with tp.apply(model, method(start=1, fallback=1)) as run:
        assert run.choice.layers == (1,)
