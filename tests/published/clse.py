"""CLSE: `CLSELlamaModel.forward`, three stages in one run, around layers that are stubs.

A stub of layer L passes on the case's states of layer L+1, at the positions that are left, and the causal attention of
the case's queries and keys there. The authors sort with `topk`, which leaves ties open: random values have none.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.published.fastv import attention
from tests.published.llama import llama_model
from tests.published.llava import grid
from tests.published.load import definitions
from tests.published.source import Case, Result, Source
from tokenprune.methods.named import load_method
from tokenprune.testing import make_context

SOURCE = Source(
    "zjubinchen/CLSE",
    "cfc9710abe4a1bd5480e521f3acd86ded4855ff3",
    "LLaVA1.5/llava/model/language_model/clse_model.py",
    "35-229",
)
SCORE = "LLaVA1.5/llava/model/language_model/tools.py"
SYSTEM, VISUAL, TEXT, WIDTH, HEADS, DIM = 35, 576, 30, 12, 4, 16
STAGES = (1, 11, 21)
CASES: list[Case] = [{"seed": seed, "budget": budget} for seed in range(3) for budget in range(3)]


def inputs(case: Case) -> dict[str, Tensor]:
    """States that enter layers, ``[layers, rows, width]``, and queries and keys of every layer."""
    noise = torch.Generator().manual_seed(case["seed"])
    rows, layers = SYSTEM + VISUAL + TEXT, STAGES[-1] + 2
    steps = torch.randn(layers, rows, WIDTH, generator=noise) * torch.rand(layers, rows, 1, generator=noise)
    query, key = (torch.randn(layers, rows, HEADS, DIM, generator=noise) for _ in range(2))
    return {"states": steps.cumsum(0), "query": query, "key": key}


class Layer:
    """Stands for a decoder layer."""

    def __init__(self, number: int, values: dict[str, Tensor], positions: list[Tensor]) -> None:
        self.self_attn = SimpleNamespace(layer_idx=number)
        self._values, self._positions = values, positions

    def __call__(self, hidden: Tensor, position_ids: Tensor, **_: Any) -> tuple[Tensor, Tensor | None]:
        """The next layer's input at these positions, and the attention map where it is read."""
        self._positions.append(position_ids[0])
        number, values = self.self_attn.layer_idx, self._values
        query, key = (values[name][number][position_ids] for name in ("query", "key"))
        weights = attention(query, key) if number + 1 in STAGES else None
        return values["states"][number + 1][position_ids], weights


def theirs(checkout: Path, case: Case) -> Result:
    """The positions with which the layers 1, 11 and 21 are called."""
    values, positions = inputs(case), list[Tensor]()
    names = ("spatial_spectral_score_2d", "get_evolution_factor", "calculate_evolution_score")
    score = definitions(checkout, SCORE, *names, torch=torch)["calculate_evolution_score"]
    forward = definitions(
        checkout,
        SOURCE.file,
        "CLSELlamaModel.forward",
        torch=torch,
        calculate_evolution_score=score,
        DynamicCache=type("DynamicCache", (), {}),
        _prepare_4d_causal_attention_mask=lambda *_: None,
    )["forward"]
    model = llama_model(
        [Layer(number, values, positions) for number in range(STAGES[-1] + 1)],
        last_attention=None,
        prune=True,
        retain_token=(192, 128, 64)[case["budget"]],
        L_list=[0],
        K_list=list(STAGES),
        image_grid_thw=(1, 24, 24),
        score_type="clse_attn",
    )
    forward(model, inputs_embeds=values["states"][None, 0], use_cache=False, return_dict=False)
    kept = ([index - SYSTEM for index in positions[layer].tolist()] for layer in STAGES)
    return {"kept": [[index for index in stage if 0 <= index < VISUAL] for stage in kept]}


def ours(case: Case) -> Result:
    """The method with its published settings, stage by stage, on the rows that are left."""
    values, method = inputs(case), load_method("clse", model="LLaVA-1.5-7B")
    counts = ([330, 210, 62], [220, 140, 41], [110, 70, 20])[case["budget"]]
    rows, kept = torch.arange(SYSTEM + VISUAL + TEXT), []
    places = torch.full((1, len(rows), 3), -1)
    places[:, SYSTEM : SYSTEM + VISUAL] = grid()
    for layer, count in zip(STAGES, counts, strict=True):
        visual = (rows >= SYSTEM) & (rows < SYSTEM + VISUAL)
        ctx = make_context(
            values["states"][None, layer, rows],
            visual[None],
            keep=count,
            query=values["query"][None, layer - 1, rows],
            key=values["key"][None, layer - 1, rows],
            embeddings=values["states"][None, 0, rows],
            grid=places[:, rows],
            layer=layer,
            num_layers=32,
        )
        chosen = rows[visual][method.pruner.select(ctx).keep[0]]
        kept.append((chosen - SYSTEM).tolist())
        rows = rows[~visual | torch.isin(rows, chosen)]
    return {"kept": kept}
