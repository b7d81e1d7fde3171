"""A simple method and model, for tests in which neither matters: FastV-like pruning of the tiny LLaVA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import tokenprune as tp
from tests.support.tiny import CASES

CASE = CASES["llava"]
KEPT = 5


def fastv(layers: list[int] | None = None, **budget: Any) -> tp.Method:
    """Keep 5 of 16 tokens by the last token's attention, before layer 1."""
    return tp.Method(
        layers={"name": "fixed", "layers": layers or [1]},
        pruner={"name": "topk", "scorer": "fastv"},
        budget=budget or {"name": "keep_count", "tokens": KEPT},
    )


def pair(batch: int = 2, padding: Any = "left", **more: Any) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """The tiny LLaVA and a batch for it."""
    model = CASE.build()
    return model, CASE.batch(model, batch, padding, **more).inputs


@torch.no_grad()
def pruned_logits(model: PreTrainedModel, inputs: dict[str, Tensor], method: tp.Method | None = None) -> Tensor:
    """Logits of a pruned forward pass."""
    with tp.apply(model, method or fastv()):
        logits: Tensor = model(**inputs).logits
    return logits
