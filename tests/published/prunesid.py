"""PruneSID: the `forward` of its tower for LLaVA, around a tower that returns the case's tensors.

The code computes principal components with `torch.pca_lowrank`, which is randomised: with `exact`, it is given the
exact ones in their place, and sorts that keep the order of equals. One of the tokens that it keeps is the class token,
which is left out here; our `choose` then keeps one patch fewer, too. Cases without `exact`, or of the pruner itself,
document these differences.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.published.llava import VISUAL, Tower, context, layer, marked
from tests.published.load import definitions
from tests.published.source import Case, Result, Source
from tokenprune.pruners.prunesid import PruneSID

SOURCE = Source(
    "ZhengyaoFang/PruneSID",
    "4ef17d96b390027f31243bc7e1d27bdee77792a5",
    "prunesid/prunesid_llava/clip_encoder.py",
    "8-50, 57-142",
)
HEADS, WIDTH, TOPICS = 4, 96, 24
RANDOM = "the components of `torch.pca_lowrank` are random; here they are exact"
CLASS = "the class token is one of the kept tokens; here one more patch is"
CASES: list[Case] = [
    *({"seed": seed, "keep": keep, "exact": True} for seed in range(4) for keep in (192, 128, 64, 32)),
    *({"seed": 10 + seed, "keep": keep, "exact": True, "spread": 0.3} for seed in range(2) for keep in (128, 64, 32)),
    {"seed": 0, "keep": 64, "differs": RANDOM},
    {"seed": 0, "keep": 64, "exact": True, "pruner": True, "differs": CLASS},
]


class Exact:
    """`torch` with exact singular vectors in place of random ones, and sorts that are stable."""

    def __getattr__(self, name: str) -> Any:
        """Everything else is that of torch."""
        return getattr(torch, name)

    def pca_lowrank(self, matrix: Tensor, q: int) -> tuple[Tensor, Tensor, Tensor]:
        """The ``q`` largest singular values of the matrix without its column means, and their vectors."""
        centred = matrix.double() - matrix.double().mean(-2, keepdim=True)
        left, values, right = torch.linalg.svd(centred, full_matrices=False)
        return left[..., :q].float(), values[..., :q].float(), right.transpose(-1, -2)[..., :q].float()

    def argsort(self, values: Tensor, dim: int, descending: bool) -> Tensor:
        """Of equal values the earlier one first."""
        return torch.argsort(values, dim=dim, descending=descending, stable=True)


def inputs(case: Case) -> dict[str, Tensor]:
    """Attention of the class token ``[1, heads, 1, rows]`` and states ``[1, rows, width]``; row 0 is that token.

    Patches share topics, and all of them a direction, so that cosines are not all near 0.
    """
    noise = torch.Generator().manual_seed(case["seed"])
    attention = (2 * torch.randn(1, HEADS, 1, VISUAL + 1, generator=noise)).softmax(-1)
    topics = torch.randn(TOPICS, WIDTH, generator=noise)
    topic = torch.randint(0, TOPICS, (VISUAL + 1,), generator=noise)
    own = torch.randn(VISUAL + 1, WIDTH, generator=noise)
    states = 0.4 * torch.randn(WIDTH, generator=noise) + topics[topic] + case.get("spread", 0.7) * own
    return {"attention": attention, "states": states[None]}


def theirs(checkout: Path, case: Case) -> Result:
    """The patches that are kept."""
    given = inputs(case)
    numerics: Any = Exact() if case.get("exact") else torch
    names = ("batch_similarity_nms", "batch_pca", "CLIPVisionTower_PruneSID.forward")
    forward = definitions(checkout, SOURCE.file, *names, torch=numerics, F=functional, math=math)["forward"]
    tower: Any = Tower(given["attention"], given["states"], given["states"])
    tower.need_token_num = case["keep"]
    torch.manual_seed(case["seed"])
    _, indices = forward(tower, torch.zeros(1))
    return {"kept": sorted(index - 1 for index in indices[0].tolist() if index > 0)}


def ours(case: Case) -> Result:
    """Our `prunesid`, with one patch fewer unless the case is one of the pruner itself."""
    given = inputs(case)
    features, attention = given["states"][:, 1:], given["attention"].mean(1)[:, 0, 1:]
    ctx = context(features, case["keep"], {-2: layer(attention, features)})
    if case.get("pruner"):
        return {"kept": marked(PruneSID().select(ctx).keep)}
    return {"kept": marked(PruneSID().choose(ctx.per_image, features, attention, class_tokens=1))}
