"""EntropyPrune without the trace: `EntropyPrune.forward` with `maten_prune`, around layers that are stubs.

The stub of layer K-1 returns the case's queries after a rotary embedding; ours gets them before it, because the entropy
does not depend on it. Both get float64, in which there are no ties. Replaced are CUDA's timers and the environment
variable that names the states. The stored snapshot of the repository has no code: the file was read from a public index
of the repository at this commit, up to the end of `maten_prune`.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.published.cuda import Torch
from tests.published.llama import llama_model
from tests.published.load import definitions
from tests.published.source import Case, Result, Source
from tokenprune.budgets.base import Schedule
from tokenprune.budgets.layer_average import LayerAverage
from tokenprune.ops.entropy import Normalization
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.matrix_entropy import MatrixEntropy
from tokenprune.testing import make_context

SOURCE = Source(
    "YahongWang1/EntropyPrune",
    "9fc1cbb4466cd7faeeab14ef8ffa2270bebd6b27",
    "llava/model/language_model/modeling_llama_self.py",
    "59-77, 269-504",
)
SYSTEM, TEXT, DIM, LAYERS = 35, 20, 128, 32
CASES: list[Case] = [
    {"seed": seed, "visual": 576, "heads": heads, "layer": layer, "average": average}
    for seed, heads in ((0, 8), (1, 8), (2, 16), (3, 32))
    for layer, average in ((2, 192), (2, 128), (2, 64), (3, 192))
]
CASES += [{"seed": seed, "visual": 720, "heads": 8, "layer": 2, "keep": keep} for seed in (4, 5) for keep in (320, 160)]
CASES.append(
    {
        **CASES[-1],
        "average": 160,
        "differs": "on LLaVA-NeXT the scripts keep exactly this many tokens from layer K on, where the budget"
        " `layer_average` takes the number as an average over all layers (use `keep_count`)",
    }
)


def inputs(case: Case) -> dict[str, Tensor]:
    """Queries of layer K-1 before rotary embedding, ``[1, rows, heads, 128]``, float64; tokens differ in their norm."""
    noise = torch.Generator().manual_seed(case["seed"])
    rows = SYSTEM + case["visual"] + TEXT
    query = torch.randn(1, rows, case["heads"], DIM, generator=noise)
    norm = torch.rand(1, rows, 1, 1, generator=noise)
    return {"query": (query * (0.05 + norm)).double()}


def rotated(query: Tensor) -> Tensor:
    """Rotary embedding of queries ``[1, rows, heads, dim]``."""
    half = DIM // 2
    rates = 10000.0 ** (-torch.arange(half, dtype=query.dtype) / half)
    angles = torch.arange(query.shape[1], dtype=query.dtype)[:, None] * rates
    cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]
    one, other = query[..., :half], query[..., half:]
    return torch.cat([one * cos - other * sin, other * cos + one * sin], -1)


def run(checkout: Path, case: Case, query: Tensor) -> Result:
    """The positions that layer K is called with."""
    functions = definitions(checkout, SOURCE.file, "normalize", "cal_cov", "cal_entropy_torch", torch=torch)
    methods = definitions(
        checkout,
        SOURCE.file,
        "EntropyPrune.forward",
        "EntropyPrune.maten_prune",
        torch=Torch(),
        os=SimpleNamespace(environ={"SELECTED_MAT": "query_states"}),
        _prepare_4d_causal_attention_mask=lambda *_: None,
        **functions,
    )
    states = rotated(query).transpose(1, 2)
    positions: list[Tensor] = []

    class Layer:
        """Returns the case's queries."""

        mlp = SimpleNamespace(up_proj=SimpleNamespace(out_features=1))

        def __init__(self, number: int) -> None:
            self.self_attn = SimpleNamespace(layer_idx=number)

        def __call__(self, hidden: Tensor, position_ids: Tensor, **_: Any) -> tuple[Tensor, None, Tensor, None, None]:
            positions.append(position_ids[0])
            return hidden, None, states, None, None

    settings = {
        "num_attention_heads": case["heads"],
        # a checkpoint of LLaVA-NeXT is recognised by the number of its text tokens
        "text_length": SYSTEM + TEXT if "keep" in case else None,
        "EntropyPrune_config": {
            "K": case["layer"],
            "image_token_start_index": SYSTEM,
            "image_token_length": 576,
            "max_num_trunction": case["keep"] if "keep" in case else case["average"],
        },
    }
    model = llama_model(
        [Layer(number) for number in range(LAYERS)],
        settings,
        all_FLOPs=0,
        kvcache=0,
        maten_prune=lambda *arguments: methods["maten_prune"](None, *arguments),
    )
    hidden = torch.zeros(1, query.shape[1], 4)
    methods["forward"](model, inputs_embeds=hidden, use_cache=False, return_dict=False)
    left = positions[case["layer"]] - SYSTEM
    return {"kept": [index for index in left.tolist() if 0 <= index < case["visual"]]}


def theirs(checkout: Path, case: Case) -> Result:
    """The authors' selection."""
    return run(checkout, case, inputs(case)["query"])


def chosen(case: Case, query: Tensor, normalization: Normalization) -> Result:
    """Our `topk` with the scorer `matrix_entropy`; the budget gives the count."""
    visual = torch.zeros(1, query.shape[1], dtype=torch.bool)
    visual[:, SYSTEM : SYSTEM + case["visual"]] = True
    if "average" in case:
        (keep,) = LayerAverage(tokens=case["average"]).keep(case["visual"], Schedule((case["layer"],), LAYERS))
    else:
        keep = case["keep"]
    hidden = torch.zeros(1, query.shape[1], 4)
    ctx = make_context(hidden, visual, keep=keep, query=query, layer=case["layer"], num_layers=LAYERS)
    scorer = MatrixEntropy(source="query", normalization=normalization)
    return {"kept": TopK(scorer=scorer).select(ctx).keep[0].nonzero()[:, 0].tolist()}


def ours(case: Case) -> Result:
    """Without the trace."""
    return chosen(case, inputs(case)["query"], "none")
