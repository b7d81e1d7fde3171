"""FrameFusion: `FrameFusion.forward`, which merges in rounds and then prunes, in three parts.

* merge: one or two rounds below the cap. The second round gets what the first one left, in both.
* cap: one round in which more tokens are similar than may merge. The code rounds the number that merges down.
* prune: by the attention of the last prompt token, or of the last four as on Qwen2-VL. The code's own
  `scaled_dot_product_attention` (`framefusion/utils.py`, lines 27-57) computes their rows. How many tokens are left
  follows from what the rounds merged and the cost: fewer than the cost says.

The lower right place of every frame changes from frame to frame, so that it never merges: without a model, the size of
a frame is read from the tokens that are there. Values are one projection of the merged states.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.published.load import definitions
from tests.published.source import Case, Result, Source, rounded
from tokenprune.pruners.framefusion import FrameFusion
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.fastv import FastV
from tokenprune.testing import make_context

SOURCE = Source(
    "thu-nics/FrameFusion",
    "fbec1d2e6bd383361c2c87ca13e73f80a8c1a9e9",
    "framefusion/main.py",
    "8-343, 345-380",
)
SYSTEM, TEXT, WIDTH, HEADS, KV_HEADS, DIM, LAYERS = 14, 20, 24, 4, 2, 16, 28
CASES: list[Case] = [
    {"part": "merge", "seed": seed, "video": video, "still": still, "rounds": rounds}
    for seed, video, still, rounds in (
        (0, [6, 8, 9], 0.3, 1),
        (1, [10, 6, 6], 0.5, 1),
        (2, [16, 6, 6], 0.4, 1),
        (3, [5, 12, 10], 0.6, 1),
        (4, [8, 7, 8], 0.4, 2),
        (5, [12, 6, 6], 0.5, 2),
        (6, [6, 10, 10], 0.3, 2),
    )
]
CASES += [
    {"part": "cap", "seed": seed, "video": video, "still": 0.95, "cost": cost}
    for seed, video, cost in ((10, [8, 6, 6], 0.3), (11, [6, 10, 10], 0.5), (12, [10, 7, 7], 0.4), (13, [5, 8, 9], 0.3))
]
CASES += [
    {"part": "prune", "seed": seed, "video": [6, 8, 9], "queries": queries, "cost": cost, "merged": merged}
    for seed, cost, merged in ((20, 0.3, [0.2, 0.05]), (21, 0.3, [0.4, 0.1, 0.02]), (22, 0.5, [0.1]))
    for queries in (1, 4)
]
CASES.append(
    {
        "part": "cap",
        "seed": 14,
        "video": [7, 7, 7],
        "still": 0.95,
        "cost": 0.3,
        "budget": 0.3,
        "differs": "where merging alone reaches a cost of 0.3, it leaves 0.3 of the tokens rounded up; the budget"
        " `keep_ratio` rounds down",
    }
)


def inputs(case: Case) -> dict[str, Tensor]:
    """States ``[1, rows, width]``, queries and keys ``[1, rows, heads, dim]``; visual tokens frame by frame."""
    noise = torch.Generator().manual_seed(case["seed"])
    frames, rows, columns = case["video"]
    scene = torch.randn(rows * columns, WIDTH, generator=noise)
    moves = torch.rand(rows * columns, 1, generator=noise) >= case.get("still", 0.5)
    moves[-1] = True
    strength = torch.where(moves, 3.0, 0.4) * torch.rand(frames, rows * columns, 1, generator=noise)
    strength[:, -1] = 30
    visual = scene + strength * torch.randn(frames, rows * columns, WIDTH, generator=noise)
    before, after = (torch.randn(count, WIDTH, generator=noise) for count in (SYSTEM, TEXT))
    hidden = torch.cat([before, visual.flatten(0, 1), after])[None]
    query = torch.randn(1, hidden.shape[1], HEADS, DIM, generator=noise)
    key = torch.randn(1, hidden.shape[1], KV_HEADS, DIM, generator=noise)
    return {"hidden": hidden, "query": query, "key": key}


def result(positions: Tensor, hidden: Tensor) -> Result:
    """The visual tokens that are left, and a projection of every third of them."""
    values = hidden.double() @ torch.linspace(-1, 1, WIDTH, dtype=torch.float64)
    return {"kept": (positions - SYSTEM).tolist(), "values": rounded(values[::3])}


def theirs(checkout: Path, case: Case) -> Result:
    """What the code's module leaves, by its handling of positions."""
    names = ("cosine_similarity", "find_contigious_latter_index", "FrameFusion")
    given = {"torch": torch, "nn": nn, "TEXT_TOKEN": -1, "IGNORE_TOKEN": -2}
    fusion = definitions(checkout, SOURCE.file, *names, **given)["FrameFusion"](cost=case.get("cost", 0.3))
    states = inputs(case)
    frames, rows, columns = case["video"]
    visual = frames * rows * columns
    patch = torch.full((1, states["hidden"].shape[1]), -1)
    patch[0, SYSTEM : SYSTEM + visual] = torch.arange(rows * columns).repeat(frames)
    fusion.prepare(
        patch,
        rows * columns,
        torch.tensor(SYSTEM),
        torch.tensor(SYSTEM + visual - 1),
        torch.tensor(visual),
        patch.shape[1],
        finish_merging=case["part"] == "prune",
        sparsity_list=list(case.get("merged", [])),
    )
    positions = torch.arange(patch.shape[1])[None]
    hidden, weights = states["hidden"].clone(), None
    if case["part"] == "prune":
        attend = definitions(checkout, "framefusion/utils.py", "scaled_dot_product_attention", torch=torch, math=math)
        query, key = states["query"].transpose(1, 2), states["key"].transpose(1, 2)
        weights = attend["scaled_dot_product_attention"](
            query, key, key, num=case["queries"], is_causal=True, enable_gqa=True
        )
    for _ in range(case.get("rounds", 1)):
        hidden, positions, _ = fusion(hidden, positions, None, weights)
    return result(positions[0, SYSTEM:-TEXT], hidden[0, SYSTEM:-TEXT])


def ours(case: Case) -> Result:
    """Our `framefusion`, and `topk` with `fastv` for the pruning."""
    states = inputs(case)
    frames, rows, columns = case["video"]
    visual = frames * rows * columns
    hidden = states["hidden"]
    grid = torch.full((1, hidden.shape[1], 3), -1)
    grid[0, SYSTEM : SYSTEM + visual] = torch.cartesian_prod(*(torch.arange(size) for size in case["video"]))
    mask = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    mask[:, SYSTEM : SYSTEM + visual] = True
    positions = torch.arange(hidden.shape[1])[None]
    if case["part"] == "prune":
        ctx = make_context(hidden, mask, keep=left(case, visual), query=states["query"], key=states["key"])
        keep = TopK(scorer=FastV(queries=case["queries"])).select(ctx).keep
        return result(positions[mask][keep[0]], hidden[mask][keep[0]])
    for _ in range(case.get("rounds", 1)):
        if case["part"] == "merge":
            ctx = make_context(hidden, mask, keep=1, grid=grid, open_ended=True, layer=0)
        elif "budget" in case:
            ctx = make_context(hidden, mask, keep=math.floor(case["budget"] * visual), grid=grid, layer=0)
        else:
            ctx = make_context(hidden, mask, keep=visual - int((1 - case["cost"]) * visual), grid=grid, layer=0)
        selection = FrameFusion().select(ctx)
        assert selection.hidden is not None
        hidden = hidden.clone()
        hidden[mask] = selection.hidden[0]
        rest = ~mask
        rest[mask] = selection.keep[0]
        hidden, grid, mask, positions = hidden[:, rest[0]], grid[:, rest[0]], mask[:, rest[0]], positions[:, rest[0]]
    return result(positions[mask], hidden[mask])


def left(case: Case, visual: int) -> int:
    """Tokens that a cost leaves of ``visual`` tokens after some rounds of merging."""
    share, seen = 1.0, 0.0
    for merged in case["merged"]:
        share *= 1 - merged
        seen += share
    return round(visual * (LAYERS * case["cost"] - seen) / ((LAYERS - len(case["merged"])) * share))
