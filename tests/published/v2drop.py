"""V2Drop: `V2DropLlamaModel.forward`, three stages in one run, around layers that are stubs.

A stub of layer L passes on the case's states of layer L+1, at the positions that are left. The norms are random, so
that none tie.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.published.llama import llama_model
from tests.published.load import definitions
from tests.published.source import Case, Result, Source
from tokenprune.methods.named import load_method
from tokenprune.testing import make_context

SOURCE = Source(
    "xuyang-liu16/V2Drop",
    "219e03ede8cf6a70d1534903fa238b13dd900bbb",
    "llava/model/language_model/V2Drop.py",
    "26-209",
)
SYSTEM, VISUAL, TEXT, WIDTH, LAYERS = 35, 576, 30, 16, 24
CASES: list[Case] = [{"seed": seed} for seed in range(8)]


def inputs(case: Case) -> dict[str, Tensor]:
    """States that enter every layer, ``[layers, rows, width]``: each layer adds noise of another size per token."""
    noise = torch.Generator().manual_seed(case["seed"])
    rows = SYSTEM + VISUAL + TEXT
    steps = torch.randn(LAYERS + 1, rows, WIDTH, generator=noise) * torch.rand(LAYERS + 1, rows, 1, generator=noise)
    return {"states": steps.cumsum(0)}


class Layer:
    """Stands for a decoder layer."""

    def __init__(self, number: int, states: Tensor, positions: list[Tensor]) -> None:
        self.self_attn = SimpleNamespace(layer_idx=number)
        self._next, self._positions = states[number + 1], positions

    def __call__(self, hidden: Tensor, position_ids: Tensor, **_: Any) -> tuple[Tensor]:
        """The next layer's input at these positions."""
        self._positions.append(position_ids[0])
        return (self._next[position_ids],)


def theirs(checkout: Path, case: Case) -> Result:
    """The positions with which the layers 3, 17 and 22 are called."""
    states, positions = inputs(case)["states"], list[Tensor]()
    given = {"torch": torch, "_prepare_4d_causal_attention_mask": lambda *_: None}
    forward = definitions(checkout, SOURCE.file, "V2DropLlamaModel.forward", **given)["forward"]
    model = llama_model([Layer(number, states, positions) for number in range(LAYERS)])
    forward(model, inputs_embeds=states[None, 0], use_cache=False, return_dict=False)
    kept = ([index - SYSTEM for index in positions[layer].tolist()] for layer in (3, 17, 22))
    return {"kept": [[index for index in stage if 0 <= index < VISUAL] for stage in kept]}


def ours(case: Case) -> Result:
    """The method with its published settings, stage by stage."""
    states = inputs(case)["states"]
    method = load_method("v2drop", model="LLaVA-1.5-7B")
    left, kept = torch.arange(VISUAL), []
    layers = method.layers.model_dump()["layers"]
    for layer, count in zip(layers, method.budget.model_dump()["tokens"], strict=True):
        before, after = (states[None, number, SYSTEM + left] for number in (layer - 1, layer))
        ctx = make_context(after, previous=before, keep=count, layer=layer, num_layers=32)
        left = left[method.pruner.select(ctx).keep[0]]
        kept.append(left.tolist())
    return {"kept": kept}
