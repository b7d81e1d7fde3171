"""SCOPE: `CLIPVisionTower_SCOPE.forward` and `SCOPE` around a tower that returns the case's tensors.

Random states have no ties, except at the end: tokens that would cover only each other tie but for their saliency.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from tests.published.llava import VISUAL, Tower, context, layer, marked
from tests.published.load import definitions
from tests.published.source import Case, Result, Source
from tokenprune.pruners.scope import Scope

SOURCE = Source(
    "kinredon/SCOPE",
    "6bf73069e0d61307051cfda8e25925bc7b7afdd9",
    "scope/clip_encoder.py",
    "101-199",
)
HEADS, WIDTH = 4, 32
CASES: list[Case] = [
    {"seed": seed, "keep": keep, "alpha": alpha}
    for seed in range(3)
    for keep, alpha in ((192, 1.0), (128, 1.0), (64, 1.0), (64, 2.0), (64, 0.5))
]


def inputs(case: Case) -> dict[str, Tensor]:
    """Attention of the class token ``[1, heads, 1, rows]`` and states ``[1, rows, width]``; row 0 is that token.

    States are a few clusters and noise, so that some tokens cover others.
    """
    noise = torch.Generator().manual_seed(case["seed"])
    attention = torch.randn(1, HEADS, 1, VISUAL + 1, generator=noise).softmax(-1)
    clusters = torch.randn(40, WIDTH, generator=noise)
    member = torch.randint(0, 40, (VISUAL + 1,), generator=noise)
    states = clusters[member] + torch.randn(VISUAL + 1, WIDTH, generator=noise)
    return {"attention": attention, "states": states[None]}


def theirs(checkout: Path, case: Case) -> Result:
    """The patches whose states the tower returns."""
    given = inputs(case)
    forward = definitions(
        checkout,
        SOURCE.file,
        "SCOPE",
        "CLIPVisionTower_SCOPE.forward",
        torch=torch,
        os=SimpleNamespace(environ={"ALPHA": str(case["alpha"])}),
    )["forward"]
    tower = Tower(given["attention"], given["states"], given["states"], dominant=case["keep"])
    _, indices = forward(tower, torch.zeros(1, 3, 2, 2))
    return {"kept": sorted(index - 1 for index in indices[0].tolist())}


def ours(case: Case) -> Result:
    """Our `scope`; the states that enter the language model are of no use to it."""
    given = inputs(case)
    tower = {-2: layer(given["attention"].mean(1)[:, 0, 1:], given["states"][:, 1:])}
    ctx = context(torch.ones(1, VISUAL, 2), case["keep"], tower)
    return {"kept": marked(Scope(alpha=case["alpha"]).select(ctx).keep)}
