"""DivPrune: the functions `DivPrune` and `pairwise_cosine_similarity` on projected features.

Random states have no ties. Their code rounds the count to the nearest integer: the cases give a share that is one.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from tests.published.llava import context, marked
from tests.published.load import definitions
from tests.published.source import Case, Result, Source
from tokenprune.pruners.max_min import MaxMin

SOURCE = Source(
    "vbdi/divprune",
    "799e2d950aa01ba7860907f5a6d86061f885dca6",
    "LLaVA/llava/model/llava_arch.py",
    "147-171",
)
WIDTH = 64
CASES: list[Case] = [
    {"seed": seed, "keep": keep, "tokens": tokens}
    for seed in range(3)
    for keep, tokens in ((56, 576), (64, 576), (128, 576), (192, 576), (120, 1200))
]


def inputs(case: Case) -> dict[str, Tensor]:
    """Projected features ``[1, tokens, width]``: clusters, and noise."""
    noise = torch.Generator().manual_seed(case["seed"])
    clusters = torch.randn(40, WIDTH, generator=noise)
    member = torch.randint(0, 40, (case["tokens"],), generator=noise)
    return {"states": (clusters[member] + torch.randn(case["tokens"], WIDTH, generator=noise))[None]}


def theirs(checkout: Path, case: Case) -> Result:
    """The tokens in the order in which they were chosen, sorted."""
    names = ("LlavaMetaForCausalLM.DivPrune", "LlavaMetaForCausalLM.pairwise_cosine_similarity")
    made = definitions(checkout, SOURCE.file, *names, torch=torch)

    def similarity(states: Tensor) -> Tensor:
        return made["pairwise_cosine_similarity"](None, states)  # type: ignore[no-any-return]

    wanted = SimpleNamespace(pairwise_cosine_similarity=similarity)
    chosen, _ = made["DivPrune"](
        wanted, inputs(case)["states"][0], case["tokens"], threshold_ratio=case["keep"] / case["tokens"]
    )
    return {"kept": sorted(chosen.tolist())}


def ours(case: Case) -> Result:
    """Our `max_min` without a pool."""
    return {"kept": marked(MaxMin().select(context(inputs(case)["states"], case["keep"], {})).keep)}
