"""VScan: `LlavaMetaForCausalLM.encode_images` of the code for LLaVA, and the lines that select for Qwen2.5-VL.

Both are run with what they call (windows, merging) around a tower that returns the case's attention; the projector
changes nothing. Recorded are the kept tokens and one projection of every kept token's merged state. Compared is the
first of the method's two stages. Where 16 windows do not divide the local half, the code for LLaVA keeps fewer tokens
than asked for; the last case documents that. The flash attention that the file for Qwen2.5-VL imports is not used.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests.published.llava import VISUAL, context, grid, layer, line, marked, model
from tests.published.load import definitions, statements
from tests.published.source import Case, Result, Source, rounded
from tokenprune.pruners.vscan import VScan

SOURCE = Source(
    "Tencent/SelfEvolvingAgent",
    "a82450e1b5e15070bee79ee8b79f8d9a97cb85f7",
    "VScan/llava/model/llava_arch.py",
    "142-293",
)
QWEN, QWEN_LINES = "VScan/qwen/model/qwen2_5_vl_custom.py", (147, 162)
QWEN_UTILS = "VScan/qwen/model/qwen2_5_vl_utils.py"
LAYERS, HEADS, WIDTH = 24, 2, 32
CASES: list[Case] = [
    *({"model": "llava", "seed": seed, "keep": keep} for seed in range(4) for keep in (192, 128, 96, 64)),
    *(
        {"model": "qwen2_5_vl", "seed": seed, "rows": rows, "columns": columns, "keep": keep}
        for seed in range(2)
        for rows, columns, keep in ((16, 20, 80), (18, 23, 69), (10, 11, 37), (27, 36, 162), (27, 36, 301))
    ),
    {
        "model": "llava",
        "seed": 0,
        "keep": 100,
        "differs": "16 windows do not divide 50: three of each are kept there, 98 tokens in all",
    },
]


def inputs(case: Case) -> dict[str, Tensor]:
    """Attention in a shallow and in a deep layer, by head ``[1, heads, tokens]``, and projected features.

    For Qwen2.5-VL without heads, ``[1, tokens]``: its code has taken the mean before.
    """
    noise = torch.Generator().manual_seed(case["seed"])
    llava = case["model"] == "llava"
    count = VISUAL if llava else case["rows"] * case["columns"]
    shape = (1, HEADS, count) if llava else (1, count)
    shallow, deep = (torch.randn(shape, generator=noise).softmax(-1) for _ in range(2))
    return {"shallow": shallow, "deep": deep, "states": torch.randn(1, count, WIDTH, generator=noise)}


def theirs(checkout: Path, case: Case) -> Result:
    """The kept tokens and their merged states."""
    given = inputs(case)
    return (theirs_on_llava if case["model"] == "llava" else theirs_on_qwen)(checkout, case, given)


def theirs_on_llava(checkout: Path, case: Case, given: dict[str, Tensor]) -> Result:
    """What `encode_images` returns."""
    parts = ("encode_images", "window_cls_selection", "token_merging")
    made = definitions(
        checkout, SOURCE.file, *(f"LlavaMetaForCausalLM.{part}" for part in parts), torch=torch, F=functional
    )
    maps = torch.zeros(LAYERS, 1, HEADS, VISUAL)
    maps[5], maps[-2] = given["shallow"], given["deep"]
    wanted = model(lambda images: (given["states"], maps), get_visual_token_num=lambda: case["keep"])
    wanted.window_cls_selection = lambda *args, **kwargs: made["window_cls_selection"](wanted, *args, **kwargs)
    wanted.token_merging = lambda *args, **kwargs: made["token_merging"](wanted, *args, **kwargs)
    states, mask, _ = made["encode_images"](wanted, None)
    return {"kept": marked(mask), "merged": rounded(states[mask].double() @ line(WIDTH))}


def theirs_on_qwen(checkout: Path, case: Case, given: dict[str, Tensor]) -> Result:
    """The lines of `forward` that select and merge, with the names that they read."""
    parts = definitions(checkout, QWEN_UTILS, "window_selection", "token_merging", torch=torch, F=functional)
    count = case["rows"] * case["columns"]
    names = statements(
        checkout,
        QWEN,
        *QWEN_LINES,
        torch=torch,
        **parts,
        visual_token_ratio=(case["keep"] + 0.5) / count,
        n_image_tokens=count,
        mask=torch.ones(1, count, dtype=torch.bool),
        attn_weights_local=given["shallow"][0],
        attn_weights_global=given["deep"][0].clone(),  # changed in place
        image_grid_thw=torch.tensor([[1, 2 * case["rows"], 2 * case["columns"]]]),
        image_embeds=given["states"][0],
        self=SimpleNamespace(model=SimpleNamespace()),
    )
    merged = names["image_embeds"].double() @ line(WIDTH)
    return {"kept": names["keep_indices"].tolist(), "merged": rounded(merged)}


def ours(case: Case) -> Result:
    """Our `vscan` with the layers and windows of the case's model."""
    given = inputs(case)
    llava = case["model"] == "llava"
    fields: dict[str, Any] = {} if llava else {"local_layer": 7, "layer": -1, "window_size": 4}
    pruner = VScan(**fields)
    attention = [given[name].mean(1) if llava else given[name] for name in ("shallow", "deep")]
    states = given["states"]
    tower = {pruner.local_layer: layer(attention[0], states), pruner.layer: layer(attention[1], states)}
    place = grid() if llava else grid(case["rows"], case["columns"])
    selection = pruner.select(context(states, case["keep"], tower, grid=place))
    assert selection.hidden is not None
    merged = selection.hidden[selection.keep].double() @ line(WIDTH)
    return {"kept": marked(selection.keep), "merged": rounded(merged)}
