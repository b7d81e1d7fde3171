"""HiPrune: `LlavaMetaForCausalLM.encode_images`, and the lines that select in the code for Qwen2.5-VL.

Replaced are the settings, which the code reads from the environment, and the moves to CUDA. Their neighbours are
neighbours in the list of tokens: an anchor in the first or last column has one in another row, and one outside the
image is moved to token 0 or to the last. Ours are neighbours on the grid. So the anchors of the compared cases lie
inside the image; the attention of its edge is too small for an anchor. Cases with `edge` document the difference.

Anchors and buffers are taken out of the deep layer's ranking by subtracting 1 there. The code for Qwen2.5-VL ranks sums
of attention over all queries, which are 1 on average: what has more stays in the ranking, and is kept only once. So the
sums of the compared cases are below 1; the case with `large` documents the difference.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.published.llava import VISUAL, context, grid, layer, marked, model
from tests.published.load import definitions, statements
from tests.published.source import Case, Result, Source
from tokenprune.pruners.hiprune import HiPrune

SOURCE = Source(
    "Danielement321/HiPrune",
    "6e83a1240874e99a25df34f54221a29bb24b7bc2",
    "LLaVA/llava/model/llava_arch.py",
    "140-184",
)
QWEN, QWEN_LINES = "Qwen2_5_VL/qwen2_5_vl_HiPrune.py", (1856, 1881)
LAYERS = {"llava": 24, "qwen2_5_vl": 32}
OBJECT_LAYER = {"llava": 9, "qwen2_5_vl": 16}
"""As their scripts set it, counted from 1."""
HEADS = 2
ROWS, COLUMNS = 20, 31
"""Tokens of the image for Qwen2.5-VL."""
WRAP = "a neighbour of an anchor at the edge is in another row, token 0 or the last token"
TWICE = "on Qwen2.5-VL, a token whose summed attention exceeds 1 is chosen twice, and fewer tokens are kept"
CASES: list[Case] = [
    *(
        {"model": "llava", "seed": seed, "keep": keep, "alpha": alpha}
        for seed in range(3)
        for keep, alpha in ((192, 0.1), (128, 0.1), (64, 0.1), (64, 0.4))
    ),
    *(
        {"model": "qwen2_5_vl", "seed": seed, "keep": keep, "alpha": 0.1}
        for seed in range(2)
        for keep in (207, 138, 69)
    ),
    {"model": "llava", "seed": 0, "keep": 192, "alpha": 0.1, "edge": True, "differs": WRAP},
    {"model": "qwen2_5_vl", "seed": 0, "keep": 207, "alpha": 0.1, "edge": True, "differs": WRAP},
    {"model": "qwen2_5_vl", "seed": 0, "keep": 207, "alpha": 0.1, "large": True, "differs": TWICE},
]


class OnHost(Tensor):
    """A tensor whose move to CUDA leaves it where it is."""

    def cuda(self, *args: Any, **kwargs: Any) -> Any:
        """Itself."""
        return self


def inputs(case: Case) -> dict[str, Tensor]:
    """Attention in a middle and in a deep layer.

    For LLaVA maps over all tokens, the class token first, ``[1, heads, rows, rows]``; for Qwen2.5-VL, whose tower has
    no class token, what every token receives, ``[tokens]``. Inside the image the middle layer has more attention than
    at the edge, unless the case says `edge`: then its first column has most. With `large`, the deep
    layer has 1 on average.
    """
    noise = torch.Generator().manual_seed(case["seed"])
    llava = case["model"] == "llava"
    rows, columns = (24, 24) if llava else (ROWS, COLUMNS)
    count = rows * columns + llava
    shape = (1, HEADS, count, count) if llava else (count,)
    middle, deep = (torch.rand(shape, generator=noise) for _ in range(2))
    inside = torch.zeros(rows, columns)
    inside[1:-1, 1:-1] = 1
    if case.get("edge"):
        inside = torch.zeros(rows, columns)
        inside[:, 0] = 1
    weight = (inside + 0.01).flatten()
    middle[..., llava:] *= weight
    if case.get("large"):
        deep = -deep.log()  # 1 on average, like sums over all queries
    return {"middle": middle, "deep": deep}


def theirs(checkout: Path, case: Case) -> Result:
    """The tokens that are kept."""
    given = inputs(case)
    if case["model"] == "qwen2_5_vl":
        return {"kept": theirs_on_qwen(checkout, case, given)}
    environ = {
        "HIPRUNE_RETENTION": str(case["keep"]),
        "HIPRUNE_ALPHA": str(case["alpha"]),
        "HIPRUNE_OBJECT_LAYER": str(OBJECT_LAYER["llava"]),
    }
    encode = definitions(
        checkout,
        SOURCE.file,
        "LlavaMetaForCausalLM.encode_images",
        torch=torch,
        os=SimpleNamespace(environ=environ),
    )["encode_images"]
    maps: list[Any] = [None] * LAYERS["llava"]
    maps[OBJECT_LAYER["llava"] - 1] = given["middle"].as_subclass(OnHost)
    maps[-2] = given["deep"].as_subclass(OnHost)
    wanted = model(lambda images: (torch.zeros(1, VISUAL, 2), maps), config=SimpleNamespace(mm_vision_select_layer=-2))
    return {"kept": marked(encode(wanted, None)[1])}


def theirs_on_qwen(checkout: Path, case: Case, given: dict[str, Tensor]) -> list[int]:
    """The lines that select, with the names that they read."""
    count = ROWS * COLUMNS
    attention: list[Any] = [None] * LAYERS["qwen2_5_vl"]
    attention[OBJECT_LAYER["qwen2_5_vl"] - 1] = given["middle"]
    attention[-1] = given["deep"].clone()  # changed in place
    names = statements(
        checkout,
        QWEN,
        *QWEN_LINES,
        torch=torch,
        attn_list=attention,
        OBJECT_LAYER=OBJECT_LAYER["qwen2_5_vl"],
        ALPHA=case["alpha"],
        RETAIN=case["keep"] / count,
        n_image_tokens=count,
        n_image_features=count,
        input_ids=torch.zeros(1, 1),
        image_grid_thw=torch.tensor([[1, 2 * ROWS, 2 * COLUMNS]]),
        self=SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2))),
    )
    return marked(names["select_mask"])


def ours(case: Case) -> Result:
    """Our `hiprune`, with the layers of the case's model."""
    given = inputs(case)
    llava = case["model"] == "llava"
    received = {name: maps.mean((1, 2))[:, 1:] if llava else maps[None] for name, maps in given.items()}
    states = torch.zeros(1, received["middle"].shape[1], 2)
    middle, deep = OBJECT_LAYER[case["model"]] - 1, -2 if llava else -1
    tower = {middle: layer(received["middle"], states), deep: layer(received["deep"], states)}
    place = grid() if llava else grid(ROWS, COLUMNS)
    ctx = context(states, case["keep"], tower, grid=place)
    return {"kept": marked(HiPrune(alpha=case["alpha"], object_layer=middle, deep_layer=deep).select(ctx).keep)}
