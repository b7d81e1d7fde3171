"""VidCom2: `vidcom2_compression` as for Qwen2-VL, whose frames have any size, and as for LLaVA-OneVision.

The code rounds the count of every frame, so that its total may miss the budget by a few tokens, which ours meets.
Most cases are videos where the rounded counts add up to the budget; then the sets are the same.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.published.load import module
from tests.published.source import Case, Result, Source
from tokenprune.pruners.vidcom2 import VidCom2
from tokenprune.testing import make_context

SOURCE = Source(
    "xuyang-liu16/VidCom2",
    "944a17d14f4848ad080a65eab2b0711a760fa154",
    "token_compressor/vidcom2/vidcom2.py",
    "1-118",
)
WIDTH = 32
CASES: list[Case] = [
    {"video": video, "model": model, "ratio": ratio, "seed": seed}
    for video, model, ratio, seeds in (
        ([8, 6, 6], "qwen2_vl", 0.25, (0, 2, 4)),
        ([8, 6, 6], "qwen2_vl", 0.5, (0, 2)),
        ([6, 10, 12], "qwen2_vl", 0.25, (0, 1, 3)),
        ([6, 10, 12], "qwen2_vl", 0.15, (0, 1)),
        ([16, 6, 8], "qwen2_5_vl", 0.15, (2, 8, 9)),
        ([16, 6, 8], "qwen2_5_vl", 0.25, (3,)),
        ([16, 6, 8], "qwen2_5_vl", 0.5, (3, 7)),
        ([4, 14, 14], "llava_ov", 0.25, (0, 1, 2)),
        ([4, 14, 14], "llava_ov", 0.15, (2, 4)),
    )
    for seed in seeds
]
CASES.append(
    {
        "video": [8, 6, 6],
        "model": "qwen2_vl",
        "ratio": 0.25,
        "seed": 1,
        "differs": "it rounds the count of every frame, so that its total misses the budget by a few tokens",
    }
)


def inputs(case: Case) -> dict[str, Tensor]:
    """Features ``[tokens, width]``, frame by frame: a scene that changes, with some frames unlike the others."""
    noise = torch.Generator().manual_seed(case["seed"])
    frames, rows, columns = case["video"]
    scene = torch.randn(rows * columns, WIDTH, generator=noise)
    strength = torch.rand(frames, 1, 1, generator=noise)
    features = scene + strength * torch.randn(frames, rows * columns, WIDTH, generator=noise)
    return {"features": (features * (0.2 + torch.rand(WIDTH, generator=noise))).flatten(0, 1)}


def theirs(checkout: Path, case: Case) -> Result:
    """The kept tokens, recognised by their features."""
    features = inputs(case)["features"]
    compress = module(checkout, SOURCE.file, torch=torch, F=F).vidcom2_compression
    kept = compress(features, case["model"], case["ratio"], frame_token_len=case["video"][1] * case["video"][2])
    return {"kept": (kept[:, None] == features[None]).all(-1).nonzero()[:, 1].tolist()}


def ours(case: Case) -> Result:
    """Our `vidcom2` with the budget's count."""
    features = inputs(case)["features"]
    grid = torch.cartesian_prod(*(torch.arange(size) for size in case["video"]))[None]
    ctx = make_context(features[None], keep=int(case["ratio"] * len(features)), grid=grid, layer=0)
    return {"kept": VidCom2().select(ctx).keep[0].nonzero()[:, 0].tolist()}
