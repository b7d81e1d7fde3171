"""FlashVID: `flashvid_compression`, on videos of some scenes whose tokens repeat each other in part.

The code adds random noise of 1e-6 to densities: it is left out, but for the cases with `noise`. What merges where, and
its value, are compared in the form in which the pruner decides how many tokens survive; the number is the code's.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.published.llava import layer, line, marked
from tests.published.load import definitions
from tests.published.source import Case, Result, Source, rounded
from tokenprune.pruners.flashvid import FlashVID
from tokenprune.testing import make_context

SOURCE = Source(
    "Fanziyang-v/FlashVID",
    "1d37422c5afcaa15ee46b5355f5ba798fa93290a",
    "flashvid/utils.py",
    "23-349",
)
CHOICE = "flashvid/token_selection.py"
WIDTH = 32
ALONE = "in a segment of one frame, the code clusters the diverse tokens once more, with the others"
CASES: list[Case] = [
    {"seed": seed, "scenes": scenes, "tokens": tokens, "retention": retention, "min_segments": least, **more}
    for seed, scenes, tokens, least in (
        (0, [4, 3, 5], 36, 3),
        (1, [6, 2], 49, 2),
        (2, [8], 25, 1),
        (3, [2, 3, 2], 64, 1),
    )
    for retention, more in ((0.1, {}), (0.25, {}), (0.25, {"relevance": True}), (0.2, {"still": 0.2}))
]
CASES += [
    {"seed": 10, "scenes": [4, 4], "tokens": 49, "retention": 0.2, "min_segments": 2, "noise": True},
    {
        "seed": 11,
        "scenes": [5, 3],
        "tokens": 36,
        "retention": 0.25,
        "min_segments": 2,
        "noise": True,
        "relevance": True,
    },
    {"seed": 0, "scenes": [4, 3, 5], "tokens": 36, "retention": 0.25, "min_segments": 8, "differs": ALONE},
]


class Falling:
    """`torch` whose noise falls along the last axis: of equal densities the earlier one is higher, as in ours."""

    def __getattr__(self, name: str) -> Any:
        """Everything else is that of torch."""
        return getattr(torch, name)

    def rand_like(self, values: Tensor, **_: Any) -> Tensor:
        """Steps that float32 still tells apart when they are added to 1."""
        count = values.shape[-1]
        return 0.25 * torch.arange(count, 0, -1, dtype=values.dtype).expand_as(values)


def inputs(case: Case) -> dict[str, Tensor]:
    """States ``[frames, tokens, width]`` and attention ``[frames, tokens]``.

    All tokens share a direction. Each scene has one picture, of which the tokens move, and some change.
    """
    noise = torch.Generator().manual_seed(case["seed"])
    shared, frames = torch.randn(WIDTH, generator=noise), []
    for length in case["scenes"]:
        picture = torch.randn(case["tokens"], WIDTH, generator=noise) + torch.randn(WIDTH, generator=noise)
        for _ in range(length):
            picture = picture.roll(1, 0)
            changes = torch.rand(case["tokens"], 1, generator=noise) < case.get("still", 0.5)
            strength = torch.where(changes, 2.0, 0.3)
            frames.append(0.5 * shared + picture + strength * torch.randn(case["tokens"], WIDTH, generator=noise))
    attention = torch.randn(len(frames), case["tokens"], generator=noise).softmax(-1)
    return {"states": torch.stack(frames), "attention": attention}


def theirs(checkout: Path, case: Case) -> Result:
    """The tokens that are left, and a projection of every third of them."""
    given = inputs(case)
    methods = ("attn_div_based_token_selection", "attn_div_v2_based_token_selection", "pairwise_cosine_distances")
    choice = definitions(checkout, CHOICE, *methods, torch=torch)
    numerics: Any = torch if case.get("noise") else Falling()
    names = (
        "flashvid_compression",
        "segment_compression",
        "segment",
        "additional_segment",
        "dpc_knn",
        "spatiotemporal_compression",
    )
    known = {"attn_div": choice[methods[0]], "attn_div_v2": choice[methods[1]]}
    compress = definitions(
        checkout, SOURCE.file, *names, torch=numerics, math=math, F=functional, ALL_TOKEN_SELECTION_METHOD=known
    )["flashvid_compression"]
    settings = SimpleNamespace(
        retention_ratio=case["retention"],
        expansion=1.25,
        alpha=0.7,
        token_selection_method="attn_div_v2" if case.get("relevance") else "attn_div",
        temporal_threshold=0.8,
        do_segment=True,
        segment_threshold=0.9,
        min_segment_num=case["min_segments"],
        complementary_segment=True,
    )
    torch.manual_seed(case["seed"])
    tokens, indices = compress(given["states"].clone(), given["attention"], settings)
    return {"kept": indices.tolist(), "values": rounded((tokens.double() @ line(WIDTH))[::3])}


def ours(case: Case) -> Result:
    """Our `flashvid`, with the share that the code's retention and expansion make."""
    given = inputs(case)
    frames, tokens = given["attention"].shape
    states = given["states"].flatten(0, 1)[None]
    grid = torch.cartesian_prod(torch.arange(frames), torch.zeros(1).long(), torch.arange(tokens))[None]
    tower = {-1: layer(given["attention"].flatten()[None], states)}
    ctx = make_context(states, keep=1, grid=grid, tower=tower, layer=0, open_ended=True)
    pruner = FlashVID(
        share=case["retention"] * 1.25, relevance=case.get("relevance", False), min_segments=case["min_segments"]
    )
    selection = pruner.select(ctx)
    assert selection.hidden is not None
    values = selection.hidden[0, selection.keep[0]].double() @ line(WIDTH)
    return {"kept": marked(selection.keep), "values": rounded(values[::3])}
