"""DyCoke: `dycole_ttm`, the merging of frames before the language model.

The code leaves the third frame of the last group whole, because its loop ends one group early, and loses the last frame
of an odd number of frames. Most cases are chosen so that neither matters: ``4 n + 2`` frames, or ``4 n + 1`` frames of
which ours gets the first ``4 n``. The code emits the kept tokens of a frame in the order of their similarity; compared
are the sets.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from tests.published.load import definitions
from tests.published.source import Case, Result, Source
from tokenprune.pruners.dycoke import DyCoke
from tokenprune.testing import make_context

SOURCE = Source(
    "KD-TAO/DyCoke",
    "dd7463498203479d0ff6f2d29c4e72928c0af244",
    "llava/model/llava_arch.py",
    "35-91",
)
WIDTH = 24
CASES: list[Case] = [
    {"seed": seed, "video": video, "rate": rate}
    for seed, video in ((0, [9, 6, 6]), (1, [6, 14, 14]), (2, [10, 7, 7]), (3, [13, 5, 9]), (4, [17, 6, 6]))
    for rate in (0.7, 0.5, 0.9)
]
CASES += [
    {
        "seed": 3,
        "video": [9, 5, 8],
        "rate": 0.9,
        "differs": "a count that rounding leaves just below a whole number is rounded down there (3 of 40), not here",
    },
    {
        "seed": 5,
        "video": [8, 6, 6],
        "rate": 0.7,
        "differs": "it keeps the third frame of the last group of four whole",
    },
    {
        "seed": 6,
        "video": [7, 6, 6],
        "rate": 0.7,
        "differs": "it loses the last frame of an odd number of frames",
    },
]


def inputs(case: Case) -> dict[str, Tensor]:
    """Features ``[tokens, width]``, frame by frame."""
    noise = torch.Generator().manual_seed(case["seed"])
    frames, rows, columns = case["video"]
    scene = torch.randn(rows * columns, WIDTH, generator=noise)
    features = scene + 0.5 * torch.randn(frames, rows * columns, WIDTH, generator=noise)
    return {"features": features.flatten(0, 1)}


def theirs(checkout: Path, case: Case) -> Result:
    """The kept tokens, recognised by their features."""
    features = inputs(case)["features"]
    merge = definitions(checkout, SOURCE.file, "dycole_ttm", torch=torch)["dycole_ttm"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it copies tensors by torch.tensor
        kept = merge(features, case["video"][1] * case["video"][2], case["rate"])
    return {"kept": sorted((kept[:, None] == features[None]).all(-1).nonzero()[:, 1].tolist())}


def ours(case: Case) -> Result:
    """Our `dycoke` with its own rate; of ``4 n + 1`` frames without the last, which the code loses."""
    frames, rows, columns = case["video"]
    frames -= frames % 4 == 1
    features = inputs(case)["features"][: frames * rows * columns]
    grid = torch.cartesian_prod(*(torch.arange(size) for size in (frames, rows, columns)))[None]
    ctx = make_context(features[None], keep=1, grid=grid, open_ended=True, layer=0)
    return {"kept": DyCoke(rate=case["rate"]).select(ctx).keep[0].nonzero()[:, 0].tolist()}
