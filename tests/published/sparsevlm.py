"""SparseVLM: `LlamaDynamicvitModel.forward` at one pruning layer, around layers that are stubs.

The stub of layer K-1 returns the case's states and the causal attention of its queries and keys; the authors' loop
chooses the raters, ranks, clusters and merges. Every case is one stage, on all 576 tokens. Replaced are: CUDA's timers;
`einops`, of which the code uses two new axes; and the noise of up to 1e-6 that breaks ties between densities, by zeros
(ours ranks by score then; random states have no ties). The authors append clusters, ours puts them at their centres:
compared are the kept tokens, and one projection of every cluster's state, sorted.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.published.cuda import Torch
from tests.published.fastv import attention
from tests.published.llama import llama_model
from tests.published.load import definitions
from tests.published.source import Case, Result, Source, rounded
from tokenprune.pruners.sparsevlm import SparseVLM
from tokenprune.testing import make_context

SOURCE = Source(
    "Gumpest/SparseVLMs",
    "26a5f48813c46cd1c7364160354e7fdd3febaa67",
    "llava/model/language_model/modelling_sparse_llama.py",
    "102-391",
)
FOLDER = "llava/model/language_model"
SYSTEM, VISUAL, HEADS, DIM, WIDTH = 35, 576, 4, 16, 32
LAYERS = (2, 6, 15)
COUNTS = {192: (300, 200, 110), 128: (303, 110, 36), 64: (66, 30, 17)}
"""Tokens that the code keeps before clustering, by its setting and stage."""
CASES: list[Case] = [
    {"seed": seed, "text": text, "setting": setting, "stage": stage}
    for seed, text in ((0, 40), (1, 24))
    for setting in COUNTS
    for stage in range(3)
]


def inputs(case: Case) -> dict[str, Tensor]:
    """Embeddings, states after layer K-1 ``[1, rows, width]``, and its queries and keys ``[1, rows, heads, dim]``."""
    noise = torch.Generator().manual_seed(case["seed"])
    rows = SYSTEM + VISUAL + case["text"]
    embeddings, hidden = (torch.randn(1, rows, WIDTH, generator=noise) for _ in range(2))
    query, key = (torch.randn(1, rows, HEADS, DIM, generator=noise) for _ in range(2))
    return {"embeddings": embeddings * 0.5, "hidden": hidden, "query": query, "key": key}


def projected(states: Tensor) -> list[float]:
    """One number per state ``[n, width]``, sorted."""
    direction = torch.linspace(-1, 1, WIDTH, dtype=torch.float64)
    return sorted(rounded(states.double() @ direction))


def rearrange(states: Tensor, pattern: str) -> Tensor:
    """The two patterns of `einops` that the code uses: a new axis before or after the tokens."""
    return states.unsqueeze({"b l r -> b l () r": 2, "b l r -> b () l r": 1}[pattern])


def theirs(checkout: Path, case: Case) -> Result:
    """The states that leave the pruning layer."""
    layer = LAYERS[case["stage"]]
    states = inputs(case)
    weights = attention(states["query"], states["key"])
    proxy = Torch()
    utils = definitions(
        checkout,
        f"{FOLDER}/utils.py",
        "batch_index_select",
        "index_points",
        "cluster_and_merge",
        torch=proxy,
        ein=SimpleNamespace(rearrange=rearrange),
    )
    score = definitions(
        checkout,
        f"{FOLDER}/score.py",
        "attn_postprocess_topk",
        torch=torch,
        layer_dict={number: stage for stage, number in enumerate(LAYERS)},
        sparse_token_dict=COUNTS,
        RETAIN_TOKN=case["setting"],
    )
    forward = definitions(
        checkout,
        SOURCE.file,
        "LlamaDynamicvitModel.forward",
        torch=proxy,
        math=math,
        V2_0=False,
        prefix="",
        loggerinfo=logging.getLogger(__name__),
        _prepare_4d_causal_attention_mask=lambda *_: None,
        BaseModelOutputWithPast=SimpleNamespace,
        **utils,
        **score,
    )["forward"]

    class Layer:
        """Returns the case's states where the code prunes, and its input elsewhere."""

        mlp = SimpleNamespace(up_proj=SimpleNamespace(out_features=1))

        def __init__(self, number: int) -> None:
            self.number = number

        def __call__(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None, Tensor]:
            return (states["hidden"] if self.number == layer else hidden_states), None, weights

    model = llama_model(
        [Layer(number) for number in range(layer + 1)],
        init_token_total_shape=664,
        generate_process_count=0,
        pruning_loc=[layer],
        num_layers=layer + 1,
        all_FLOPs=0,
        num_forward=0,
        num_token_pool=0,
        total_cuda_time=0.0,
    )
    output = forward(
        model,
        inputs_embeds=states["embeddings"],
        use_cache=False,
        return_dict=True,
        image_shape=VISUAL,
        pre_prompt_length_list=[SYSTEM],
    )[2].last_hidden_state
    visual = states["hidden"][0, SYSTEM : SYSTEM + VISUAL]
    left = output[0, SYSTEM : output.shape[1] - case["text"]]
    count = COUNTS[case["setting"]][case["stage"]]
    equal = (left[:count, None] == visual[None]).all(-1)
    return {"kept": equal.nonzero()[:, 1].tolist(), "clusters": projected(left[count:])}


def ours(case: Case) -> Result:
    """Our `sparsevlm`: once without recycling for the kept tokens, and once with it for the clusters."""
    states = inputs(case)
    rows = states["hidden"].shape[1]
    visual = torch.zeros(1, rows, dtype=torch.bool)
    visual[:, SYSTEM : SYSTEM + VISUAL] = True
    count = COUNTS[case["setting"]][case["stage"]]
    clusters = (int(0.3 * (VISUAL - count)) + 1) // 10 + 1

    def context(keep: int) -> Any:
        return make_context(visual=visual, keep=keep, **states)

    kept = SparseVLM(recycle=False).select(context(count)).keep[0]
    selection = SparseVLM().select(context(count + clusters))
    assert selection.hidden is not None
    assert bool((selection.keep[0] | ~kept).all())
    return {
        "kept": kept.nonzero()[:, 0].tolist(),
        "clusters": projected(selection.hidden[0, selection.keep[0] & ~kept]),
    }
