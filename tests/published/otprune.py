"""OTPrune: the functions `OTPrune` and `greedy_select` on projected features.

They are run in float32. Random states have no ties. Their code rounds the count to the nearest integer: the cases give
a share that is one. The text, which they pass along and do not use, is empty.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.published.llava import context, marked
from tests.published.load import definitions
from tests.published.source import Case, Result, Source
from tokenprune.pruners.otprune import OTPrune

SOURCE = Source(
    "xiwenc1/OTPrune",
    "3414730f39daa57e0629138d898f98ee682f0b2b",
    "LLaVA/llava/model/llava_arch.py",
    "133-170, 216-271",
)
WIDTH = 64
CASES: list[Case] = [
    {"seed": seed, "keep": keep, "tokens": tokens}
    for seed in range(3)
    for keep, tokens in ((56, 576), (64, 576), (128, 576), (192, 576), (118, 1200))
]


def inputs(case: Case) -> dict[str, Tensor]:
    """Projected features ``[1, tokens, width]``: clusters and noise, channels and tokens of unequal size."""
    noise = torch.Generator().manual_seed(case["seed"])
    clusters = torch.randn(40, WIDTH, generator=noise)
    member = torch.randint(0, 40, (case["tokens"],), generator=noise)
    states = clusters[member] + torch.randn(case["tokens"], WIDTH, generator=noise)
    states = states * (0.5 + torch.rand(case["tokens"], 1, generator=noise)) * torch.logspace(-1, 1, WIDTH)
    return {"states": states[None]}


def theirs(checkout: Path, case: Case) -> Result:
    """The tokens in the order of their set, sorted."""
    names = ("greedy_select", "LlavaMetaForCausalLM.OTPrune")
    made = definitions(checkout, SOURCE.file, *names, torch=torch)
    share = case["keep"] / case["tokens"]
    chosen, _ = made["OTPrune"](None, inputs(case)["states"][0], case["tokens"], torch.empty(0), threshold_ratio=share)
    return {"kept": sorted(chosen.tolist())}


def ours(case: Case) -> Result:
    """Our `otprune`."""
    return {"kept": marked(OTPrune().select(context(inputs(case)["states"], case["keep"], {})).keep)}
