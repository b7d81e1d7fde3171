"""PyramidDrop: `LlamaModel.pdrop_rank_drop` on one layer that stands for layer K, between the layers K-1 and K.

The layer has the case's weights: a norm, query and key projections, and a rotary embedding that turns nothing (the
tests of the engine check the rotary embedding of layer K). The mask is the causal one of a prompt without padding. The
authors sort with `topk`, which leaves ties open: random values have none.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tests.published.load import definitions
from tests.published.source import Case, Result, Source
from tokenprune.methods.named import load_method
from tokenprune.testing import make_context

SOURCE = Source(
    "Cooperx521/PyramidDrop",
    "6444f304aee4b7edcb022839fb9e8cd07859704a",
    "llava/model/modeling_llama_pdrop.py",
    "1291-1466",
)
SYSTEM, VISUAL, TEXT, HEADS, DIM, WIDTH = 35, 576, 30, 4, 16, 32
RATIOS = (1.0, 0.5, 0.25, 0.125)
CASES: list[Case] = [{"seed": seed, "stage": stage} for seed in range(6) for stage in range(3)]


def counts(case: Case) -> tuple[int, int]:
    """Visual tokens before and after a stage."""
    return int(VISUAL * RATIOS[case["stage"]]), int(VISUAL * RATIOS[case["stage"] + 1])


def inputs(case: Case) -> dict[str, Tensor]:
    """States that enter layer K, ``[1, rows, width]``, and the weights of its query and key projections."""
    noise = torch.Generator().manual_seed(case["seed"])
    rows = SYSTEM + counts(case)[0] + TEXT
    states = torch.randn(1, rows, WIDTH, generator=noise)
    query, key = (torch.randn(HEADS * DIM, WIDTH, generator=noise) * WIDTH**-0.5 for _ in range(2))
    return {"states": states, "query": query, "key": key}


def normalised(states: Tensor) -> Tensor:
    """The norm of the layer."""
    return states * states.pow(2).mean(-1, keepdim=True).rsqrt()


def causal(mask: Tensor, shape: tuple[int, int], states: Tensor, past_key_values_length: int) -> Tensor:
    """The additive causal mask of a prompt without padding, ``[batch, 1, rows, rows]``."""
    rows = shape[1]
    hidden = torch.ones(rows, rows, dtype=torch.bool).triu(1)
    return torch.zeros(rows, rows).masked_fill(hidden, torch.finfo(torch.float32).min).expand(shape[0], 1, rows, rows)


def theirs(checkout: Path, case: Case) -> Result:
    """Which rows of the states their function returns."""
    given: dict[str, Any] = {
        "torch": torch,
        "nn": nn,
        "math": math,
        "IGNORE_INDEX": -100,
        "apply_rotary_pos_emb": lambda query, key, cos, sin, positions: (query, key),
        "_prepare_4d_causal_attention_mask": causal,
    }
    drop = definitions(checkout, SOURCE.file, "LlamaModel.pdrop_rank_drop", **given)["pdrop_rank_drop"]
    values = inputs(case)
    states = values["states"]
    attention = SimpleNamespace(
        num_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=DIM,
        q_proj=lambda x: x @ values["query"].T,
        k_proj=lambda x: x @ values["key"].T,
        v_proj=lambda x: x @ values["key"].T,
        rotary_emb=lambda x, seq_len: (None, None),
    )
    model = SimpleNamespace(
        config=SimpleNamespace(tokenizer_padding_side="right", tokenizer_model_max_length=4096),
        image_tokens=[VISUAL],
        image_token_posi=[SYSTEM],
        image_token_ratio_list=list(RATIOS),
        prompt_len=[SYSTEM + TEXT],
        training=False,
        layers=[SimpleNamespace(self_attn=attention, input_layernorm=normalised)],
    )
    left = drop(model, case["stage"], 0, states, None, None, None)[2]
    rows = (left[0, :, None] == states[0]).all(-1).int().argmax(1) - SYSTEM
    return {"kept": [row for row in rows.tolist() if 0 <= row < counts(case)[0]]}


def ours(case: Case) -> Result:
    """The pruner of the named method, on the layer's own queries and keys."""
    values = inputs(case)
    states = values["states"]
    query, key = ((normalised(states) @ values[name].T).unflatten(-1, (HEADS, DIM)) for name in ("query", "key"))
    visual = torch.zeros(states.shape[:2], dtype=torch.bool)
    visual[:, SYSTEM : SYSTEM + counts(case)[0]] = True
    pruner = load_method("pyramiddrop").pruner
    ctx = make_context(states, visual, keep=counts(case)[1], query=query, key=key, needs={"entering"})
    return {"kept": pruner.select(ctx).keep[0].nonzero()[:, 0].tolist()}
