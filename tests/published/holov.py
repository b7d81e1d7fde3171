"""HoloV: the function `HoloV` on projected features and the class token's attention.

Their function returns states; the kept tokens are those whose states these are. It returns the tokens of a crop in
order of attention; the case with `ordered` documents that. What a crop cannot hold becomes zero vectors there; the case
with `crowded`, where the attention is in one crop, documents that.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.published.llava import VISUAL, context, layer, marked
from tests.published.load import definitions
from tests.published.source import Case, Result, Source
from tokenprune.pruners.holov import HoloV

SOURCE = Source(
    "obananas/HoloV",
    "1d2e65e961e698ff0e7d5bb4625489177dd9deba",
    "llava/model/utils.py",
    "22-151",
)
WIDTH = 32
CASES: list[Case] = [
    *(
        {"seed": seed, "keep": keep, "tokens": tokens, "crops": crops}
        for seed in range(4)
        for keep, tokens, crops in ((192, 576, 16), (128, 576, 16), (64, 576, 16), (64, 300, 16), (96, 576, 9))
    ),
    {
        "seed": 0,
        "keep": 64,
        "tokens": 576,
        "crops": 16,
        "ordered": True,
        "differs": "tokens of a crop leave in order of attention",
    },
    {
        "seed": 0,
        "keep": 64,
        "tokens": 576,
        "crops": 16,
        "crowded": True,
        "differs": "what a crop cannot hold becomes zero vectors",
    },
]


def inputs(case: Case) -> dict[str, Tensor]:
    """The class token's attention ``[1, tokens]`` and projected features ``[1, tokens, width]``."""
    noise = torch.Generator().manual_seed(case["seed"])
    logits = torch.randn(1, case["tokens"], generator=noise)
    if case.get("crowded"):
        logits[:, : VISUAL // case["crops"]] += 6
    return {"attention": logits.softmax(-1), "states": torch.randn(1, case["tokens"], WIDTH, generator=noise)}


def theirs(checkout: Path, case: Case) -> Result:
    """The tokens whose states are returned."""
    select = definitions(checkout, SOURCE.file, "HoloV", torch=torch)["HoloV"]
    given = inputs(case)
    left = select(given["states"], given["attention"], num_patches=case["crops"], new_image_token_num=case["keep"])
    kept = (left[0, :, None] == given["states"]).all(-1).nonzero()[:, 1].tolist()
    return {"kept": kept if case.get("ordered") else sorted(kept)}


def ours(case: Case) -> Result:
    """Our `holov`."""
    given = inputs(case)
    ctx = context(given["states"], case["keep"], {-2: layer(given["attention"], given["states"])})
    return {"kept": marked(HoloV(crops=case["crops"]).select(ctx).keep)}
