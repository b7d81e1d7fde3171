"""EVS: `compute_retention_mask` of SGLang, which is vLLM's function.

Neither project is the paper's, but vLLM's file is NVIDIA's own. The two files name each other, and these two functions
are the same. A video is a scene that changes a little from frame to frame.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.published.load import definitions
from tests.published.source import Case, Result, Source
from tokenprune.pruners.evs import Evs
from tokenprune.testing import make_context

SOURCE = Source(
    "sgl-project/sglang",
    "1966fd0e108c574115611054414f4f8af9c7c765",
    "python/sglang/srt/multimodal/evs/evs_core.py",
    "19-38, 41-95",
)
WIDTH = 24
CASES: list[Case] = [
    {"seed": seed, "video": video, "rate": rate, "budget": budget}
    for seed, video in ((0, [8, 6, 6]), (1, [4, 12, 10]), (2, [16, 7, 7]), (3, [2, 13, 13]))
    for rate in (0.5, 0.75, 0.875)
    for budget in ("adaptive", "count")
]
CASES += [
    {
        "seed": 4,
        "video": [20, 7, 7],
        "rate": 0.9,
        "budget": "adaptive",
        "differs": "a count that rounding leaves just below a whole number is rounded down there (97 of 980), not here",
    },
    {
        "seed": 5,
        "video": [8, 12, 12],
        "rate": 0.75,
        "budget": "adaptive",
        "half": True,
        "change": 0.03,
        "differs": "in half precision its ranking drowns in rounding; ours computes the cosines in float32",
    },
]


def inputs(case: Case) -> dict[str, Tensor]:
    """Features ``[tokens, width]``, frame by frame."""
    noise = torch.Generator().manual_seed(case["seed"])
    frames, rows, columns = case["video"]
    scene = torch.randn(rows * columns, WIDTH, generator=noise)
    change = torch.rand(frames, rows * columns, 1, generator=noise) * case.get("change", 0.3)
    features = scene + change * torch.randn(frames, rows * columns, WIDTH, generator=noise).cumsum(0)
    features = features.flatten(0, 1)
    return {"features": features.half() if "half" in case else features}


def theirs(checkout: Path, case: Case) -> Result:
    """The retained tokens."""
    functions = definitions(
        checkout, SOURCE.file, "compute_retained_tokens_count", "compute_retention_mask", torch=torch
    )
    mask = functions["compute_retention_mask"](
        inputs(case)["features"], tuple(case["video"]), spatial_merge_size=1, q=case["rate"]
    )
    return {"kept": mask.nonzero()[:, 0].tolist()}


def ours(case: Case) -> Result:
    """Our `evs`, with the count of its own rate or with the same count from a budget."""
    frames, rows, columns = case["video"]
    grid = torch.cartesian_prod(*(torch.arange(size) for size in case["video"]))[None]
    adaptive = case["budget"] == "adaptive"
    keep = 1 if adaptive else max(rows * columns, int(frames * rows * columns * (1 - case["rate"])))
    ctx = make_context(inputs(case)["features"][None], keep=keep, grid=grid, open_ended=adaptive, layer=0)
    pruner = Evs(rate=case["rate"]) if adaptive else Evs()
    return {"kept": pruner.select(ctx).keep[0].nonzero()[:, 0].tolist()}
