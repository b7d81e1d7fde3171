"""ToMe: `bipartite_soft_matching` and `merge_wavg`, step by step.

The paper merges inside the tower, where every layer has its own keys. Ours merges behind it and averages the keys of
one layer, so that is how the authors' functions are driven here: after each step the keys are merged like the tokens. A
class token leads the list, which their code protects. Compared are the number of merged features and one projection of
them, of which every fourth in sorted order is kept.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from tests.published.load import definitions
from tests.published.source import Case, Result, Source, rounded
from tokenprune.pruners.tome import ToMe
from tokenprune.testing import TowerTensors, make_context

SOURCE = Source(
    "facebookresearch/ToMe",
    "af95e4b1befa172dadccd8c81e223b10090f9579",
    "tome/merge.py",
    "14-15, 18-97, 210-224",
)
TOKENS, KEY_DIM, WIDTH = 576, 64, 16
CASES: list[Case] = [
    {"seed": seed, "keep": keep, "steps": steps}
    for seed, keep, steps in (
        *((seed, keep, 1) for seed in range(5) for keep in (544, 432, 288)),
        *((seed, keep, 24) for seed in range(5, 9) for keep in (288, 192, 64)),
        *((seed, 100, 7) for seed in range(9, 12)),
    )
]


def inputs(case: Case) -> dict[str, Tensor]:
    """Keys ``[tokens, dim]`` and features ``[tokens, width]``; the keys of neighbours are alike."""
    noise = torch.Generator().manual_seed(case["seed"])
    keys = torch.randn(TOKENS, KEY_DIM, generator=noise)
    keys = keys + 0.7 * keys.roll(1, 0)
    return {"keys": keys, "features": torch.randn(TOKENS, WIDTH, generator=noise)}


def projected(states: Tensor) -> Result:
    """One number per state ``[n, width]``."""
    values = sorted(rounded(states.double() @ torch.linspace(-1, 1, WIDTH, dtype=torch.float64)))
    return {"count": [len(values)], "merged": values[::4]}


def theirs(checkout: Path, case: Case) -> Result:
    """The merged features."""
    functions = definitions(
        checkout, SOURCE.file, "do_nothing", "bipartite_soft_matching", "merge_wavg", torch=torch, math=math
    )
    tensors = inputs(case)
    class_token = torch.ones(1, 1, KEY_DIM), torch.zeros(1, 1, WIDTH)
    keys = torch.cat([class_token[0], tensors["keys"][None]], 1)
    features = torch.cat([class_token[1], tensors["features"][None]], 1)
    sizes = None
    per_step = math.ceil((TOKENS - case["keep"]) / case["steps"])
    while (surplus := keys.shape[1] - 1 - case["keep"]) > 0:
        merge, _ = functions["bipartite_soft_matching"](keys, min(per_step, surplus), class_token=True)
        keys, _ = functions["merge_wavg"](merge, keys, sizes)
        features, sizes = functions["merge_wavg"](merge, features, sizes)
    return projected(features[0, 1:])


def ours(case: Case) -> Result:
    """Our `tome`."""
    tensors = inputs(case)
    flat = torch.zeros(1, TOKENS)
    tower = {-2: TowerTensors(flat, flat, tensors["keys"][None], tensors["features"][None])}
    ctx = make_context(tensors["features"][None], keep=case["keep"], tower=tower, layer=0)
    selection = ToMe(steps=case["steps"]).select(ctx)
    assert selection.hidden is not None
    return projected(selection.hidden[selection.keep])
