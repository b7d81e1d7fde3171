"""Gradients of a pruned forward, with gradient checkpointing and without."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import tokenprune as tp
from tests.support.matrix import method
from tests.support.tiny import CASES
from tests.support.tiny.core import TRANSFORMERS
from tokenprune.errors import UnsupportedFeatureError

HALF = method([1], {"name": "keep_ratio", "ratio": 0.5})
HOOKS_RUN_AGAIN = TRANSFORMERS < (5, 20)
"""These versions checkpoint a layer's `__call__`, and with it the engine's hooks."""


def gradients(model: PreTrainedModel, inputs: dict[str, Tensor], inside: bool) -> dict[str, Tensor]:
    """Of the loss of all tokens, and of one on the logits; the backward pass runs inside the block or after it."""
    model.zero_grad()
    with tp.apply(model, HALF) as run:
        output = model(**inputs, labels=inputs["input_ids"], use_cache=False)
        loss = output.loss + output.logits.float().pow(2).mean()
        if inside:
            loss.backward()
    assert run.stages[0].after == [8, 8]
    if not inside:
        loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def training(family: str) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    model = CASES[family].build().train()
    return model, CASES[family].inputs(model)


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "after"])
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_gradient_checkpointing_changes_no_gradient(family: str, reentrant: bool, inside: bool) -> None:
    model, inputs = training(family)
    expected = gradients(model, inputs, inside)
    assert len(expected) > 40
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    ran: list[int] = []
    projection = model.get_decoder().layers[-1].self_attn.q_proj
    projection.register_forward_hook(lambda *_: ran.append(1))
    refused: Any = pytest.raises(UnsupportedFeatureError, match=r"gradient checkpointing.*newer transformers")
    with refused if HOOKS_RUN_AGAIN else nullcontext():
        found = gradients(model, inputs, inside)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
        assert len(ran) == 2, "the layer was not computed again"


@torch.no_grad()
def test_checkpointing_without_gradients_is_pruned() -> None:
    """A model left in training mode is evaluated: nothing is computed again."""
    model, inputs = training("llava")
    with tp.apply(model, HALF):
        expected = model(**inputs, use_cache=False).logits
    model.gradient_checkpointing_enable()
    with tp.apply(model, HALF) as run:
        found = model(**inputs, use_cache=False).logits
    assert run.stages[0].after == [8, 8]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_prompt_without_images_is_checkpointed_by_every_version() -> None:
    model, _ = training("llava")
    model.gradient_checkpointing_enable()
    with tp.apply(model, HALF):
        model(**CASES["llava"].inputs(model, variant="text"), use_cache=False).logits.mean().backward()
