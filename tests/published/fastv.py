"""FastV: `LlamaModel.forward` with its in-place dropping, around layers that are stubs.

The authors read the attention map that layer K-1 returns. Our stub of a layer returns the causal attention of the
case's queries and keys; what the authors' loop makes of it is recorded. They sort with `topk`, which leaves ties open:
random values have none.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.published.llama import llama_model
from tests.published.load import definitions
from tests.published.source import Case, Result, Source
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.fastv import FastV
from tokenprune.testing import make_context

SOURCE = Source(
    "pkunlp-icler/FastV",
    "d1659729b5bf1be225e99ee15783deeea80f63b1",
    "src/transformers/src/transformers/models/llama/modeling_llama.py",
    "623-846",
)
SYSTEM, VISUAL, TEXT, HEADS, DIM = 35, 576, 30, 8, 16
CASES: list[Case] = [
    {"seed": seed, "keep": keep, "layer": layer}
    for seed in range(4)
    for keep, layer in ((288, 2), (192, 2), (128, 3), (64, 5))
]


def inputs(case: Case) -> dict[str, Tensor]:
    """Queries and keys of layer K-1, ``[1, rows, heads, dim]``."""
    noise = torch.Generator().manual_seed(case["seed"])
    rows = SYSTEM + VISUAL + TEXT
    query, key = (torch.randn(1, rows, HEADS, DIM, generator=noise) for _ in range(2))
    return {"query": query, "key": key}


def attention(query: Tensor, key: Tensor) -> Tensor:
    """Causal attention, ``[1, heads, rows, rows]``."""
    logits = torch.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    hidden = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
    return logits.masked_fill(hidden, float("-inf")).softmax(-1)


def theirs(checkout: Path, case: Case) -> Result:
    """The positions that layer K is called with."""
    forward = definitions(checkout, SOURCE.file, "LlamaModel.forward", torch=torch, random=random)["forward"]
    weights = attention(**inputs(case))
    positions: list[Tensor] = []

    def layer(hidden: Tensor, position_ids: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        positions.append(position_ids[0])
        return hidden, weights

    model = llama_model(
        [layer] * (case["layer"] + 1),
        {"output_attentions": True},
        use_fast_v=True,
        fast_v_inplace=True,
        fast_v_sys_length=SYSTEM,
        fast_v_image_token_length=VISUAL,
        fast_v_attention_rank=case["keep"],
        fast_v_agg_layer=case["layer"],
        _prepare_decoder_attention_mask=lambda *_: None,
    )
    forward(model, inputs_embeds=torch.zeros(1, weights.shape[-1], 4), use_cache=False, return_dict=False)
    left = positions[case["layer"]] - SYSTEM
    return {"kept": [index for index in left.tolist() if 0 <= index < VISUAL]}


def ours(case: Case) -> Result:
    """Our `topk` with the scorer `fastv`."""
    states = inputs(case)
    rows = states["query"].shape[1]
    visual = torch.zeros(1, rows, dtype=torch.bool)
    visual[:, SYSTEM : SYSTEM + VISUAL] = True
    ctx = make_context(torch.zeros(1, rows, 4), visual, keep=case["keep"], layer=case["layer"], num_layers=32, **states)
    return {"kept": TopK(scorer=FastV()).select(ctx).keep[0].nonzero()[:, 0].tolist()}
