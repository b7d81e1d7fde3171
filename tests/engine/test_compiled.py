"""Models that were compiled, and warmed up, before a method was applied: Dynamo does not guard on new hooks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import tokenprune as tp
from tests.support import compiling
from tests.support.compiling import BACKEND
from tests.support.simple import KEPT, fastv, pair, pruned_logits


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def shallow() -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    """The tiny LLaVA with two layers, one before the method prunes and one after: Dynamo traces every layer anew."""
    model, inputs = pair()
    decoder: Any = model.get_decoder()
    decoder.layers = decoder.layers[:2]
    decoder.config.num_hidden_layers = 2
    return model, inputs


WAYS = [
    compiling.wrapped,
    compiling.in_place,
    compiling.language_model,
    compiling.language_model_in_place,
    compiling.forward,
    compiling.decoder_forward,
    compiling.every_layer,
    compiling.every_layer_wrapped,
]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@torch.no_grad()
def test_compiled_models_are_pruned(way: Any) -> None:
    """What apply is given, and what is called, may differ; the result is that of the plain model."""
    model, inputs = shallow()
    expected, unpruned = pruned_logits(model, inputs), model(**inputs).logits
    given, called = way(model)
    called(**inputs)  # from here on Dynamo has compiled code, whose guards do not see hooks
    for applied in dict.fromkeys([given, model]):  # the wrapper, or the model that somebody's wrapper holds
        with tp.apply(applied, fastv()) as run:
            logits = called(**inputs).logits
        assert run.report.after == [KEPT, KEPT]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    after = called(**inputs).logits
    torch.testing.assert_close(after, unpruned, atol=1e-5, rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_a_model_may_be_compiled_inside_the_block() -> None:
    """What is compiled while a method is applied runs the method, and without it after the block."""
    model, inputs = shallow()
    expected, unpruned = pruned_logits(model, inputs), model(**inputs).logits
    with tp.apply(model, fastv()):
        compiled = torch.compile(model, backend=BACKEND)
        torch.testing.assert_close(compiled(**inputs).logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(compiled(**inputs).logits, unpruned, atol=1e-5, rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_vision_tower_is_read() -> None:
    model, inputs = shallow()
    method = tp.Method(
        layers={"name": "fixed", "layers": [0]},
        pruner={"name": "topk", "scorer": "vision_attention"},
        budget={"name": "keep_count", "tokens": KEPT},
    )
    expected = pruned_logits(model, inputs, method)
    model.model.vision_tower.compile(backend=BACKEND)
    model(**inputs)
    torch.testing.assert_close(pruned_logits(model, inputs, method), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_compiled_model_is_observed() -> None:
    """Calibration runs the model, too."""
    model, inputs = shallow()
    plain = tp.engine.measure_entropy(model, [inputs], cache=False)
    for layer in model.model.language_model.layers:
        layer.compile(backend=BACKEND)
    model(**inputs)
    measured = tp.engine.measure_entropy(model, [inputs], cache=False)
    for one, other in zip(measured.curves, plain.curves, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


@torch.no_grad()
def test_a_wrapper_compiled_as_one_graph_runs_eagerly() -> None:
    """``fullgraph=True`` allows no part that runs without Dynamo: the wrapper itself is paused."""
    model, inputs = shallow()
    expected = pruned_logits(model, inputs)
    compiled: Any = torch.compile(model, backend=BACKEND, fullgraph=True)
    with tp.apply(compiled, fastv()) as run:
        logits = compiled(**inputs).logits
    assert run.report.after == [KEPT, KEPT]
    assert torch.equal(logits, expected)
