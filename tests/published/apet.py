"""ApET: `encode_images` before the language model, `LlamaModel.layer_prune` inside it, and the lines for Qwen2.5-VL.

The tower returns the case's features, and the projector doubles them. Their start is random: `randint` is replaced by
one that returns the case's start, which is the one that our seed gives. They round to half precision on the way; here
that is left out (`half` and `bfloat16` keep float32), except in the last case, which documents what it changes. For
Qwen2.5-VL only the stage before the language model runs in their code, too: the other one stands commented out.
Recorded are the kept tokens where they are told, and one projection of every kept token's state, by position. Random
states have no ties.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

from tests.published.llava import VISUAL, context, layer, line, marked, model
from tests.published.load import definitions, statements
from tests.published.source import Case, Result, Source, rounded
from tokenprune.ops.rebuild import random_shares
from tokenprune.pruners.apet import Apet
from tokenprune.testing import TowerTensors

SOURCE = Source(
    "MaQianKun0/ApET",
    "70cc01b215f4d74c5661c699919fe3aeda48bed0",
    "llava/model/llava_arch.py",
    "149-251",
)
UTILS, INSIDE = "llava/model/utils.py", "llava/model/modeling_llama_x.py"
QWEN, QWEN_LINES = "qwen/model/qwen2_5_vl_custom.py", (150, 185)
QWEN_UTILS = "qwen/model/qwen2_5_vl_utils.py"
WIDTH, BEFORE, AFTER = 64, 35, 7
#: The start that each of our seeds gives, by the number of tokens.
STARTS = {576: {0: 518, 1: 18, 3: 210}, 96: {0: 86, 1: 3, 3: 35}, 288: {0: 259, 1: 9, 3: 105}}
#: Our fields where they are not those of the tower.
FIELDS: dict[str, dict[str, Any]] = {
    "inside": {"compare": "hidden", "order": "error"},
    "qwen2_5_vl": {"compare": "hidden", "blend": 0.5},
}
CASES: list[Case] = [
    *(
        {"stage": "tower", "seed": seed, "tokens": VISUAL, "keep": keep, "basis": basis, "start": STARTS[VISUAL][seed]}
        for seed in STARTS[VISUAL]
        for keep, basis in ((96, 10), (288, 10), (96, 4))
    ),
    *(
        {"stage": "inside", "seed": seed, "tokens": tokens, "keep": keep, "basis": 10, "start": STARTS[tokens][seed]}
        for seed in STARTS[VISUAL]
        for tokens, keep in ((96, 32), (288, 96))
    ),
    *(
        {"stage": "qwen2_5_vl", "seed": seed, "tokens": 288, "keep": keep, "basis": 10, "start": STARTS[288][seed]}
        for seed in STARTS[288]
        for keep in (86, 28)
    ),
    {
        "stage": "tower",
        "seed": 0,
        "tokens": VISUAL,
        "keep": 96,
        "basis": 10,
        "start": STARTS[VISUAL][0],
        "half": True,
        "differs": "theirs in float16, where distances, means and merged states are rounded",
    },
]


class Started:
    """The module torch with a `randint` that returns one number.

    Args:
        start: The number.
    """

    def __init__(self, start: int) -> None:
        self.start = start

    def randint(self, low: int, high: int, size: tuple[int, ...], device: Any) -> Tensor:
        """The number, as often as asked for."""
        return torch.full(size, self.start)

    def __getattr__(self, name: str) -> Any:
        """Everything else is torch's."""
        return getattr(torch, name)


def inputs(case: Case) -> dict[str, Tensor]:
    """States ``[1, tokens, width]``: clusters, and noise."""
    noise = torch.Generator().manual_seed(case["seed"])
    clusters = torch.randn(40, WIDTH, generator=noise)
    member = torch.randint(0, 40, (case["tokens"],), generator=noise)
    return {"states": (clusters[member] + 0.7 * torch.randn(case["tokens"], WIDTH, generator=noise))[None]}


def theirs(checkout: Path, case: Case) -> Result:
    """What goes into the language model, or on through it."""
    started = Started(case["start"])
    fps = definitions(checkout, UTILS, "fps", torch=started)["fps"]
    states = inputs(case)["states"]
    if "half" in case:
        return theirs_in_tower(checkout, case, fps, states.half())
    run = {"tower": theirs_in_tower, "inside": theirs_inside, "qwen2_5_vl": theirs_on_qwen}[case["stage"]]
    with patch.object(Tensor, "half", Tensor.float), patch.object(Tensor, "bfloat16", Tensor.float):
        return run(checkout, case, fps, states)


def theirs_in_tower(checkout: Path, case: Case, fps: Any, states: Tensor) -> Result:
    """What `encode_images` returns."""
    names = ("LlavaMetaForCausalLM.token_merging", "LlavaMetaForCausalLM.encode_images")
    made = definitions(checkout, SOURCE.file, *names, torch=torch, F=functional, fps=fps)
    rows = torch.cat([torch.zeros_like(states[:, :1]), states], 1)  # the class token, which they leave out
    wanted = model(
        lambda images: (rows, None),
        lambda features: 2 * features,
        get_visual_token_num=lambda: case["keep"],
        model=SimpleNamespace(basis_token_num=case["basis"]),
    )
    wanted.token_merging = lambda *args: made["token_merging"](wanted, *args)
    projected, mask = made["encode_images"](wanted, None)
    return {"kept": marked(mask), "merged": rounded(projected[mask].double() @ line(WIDTH))}


def theirs_inside(checkout: Path, case: Case, fps: Any, states: Tensor) -> Result:
    """What `layer_prune` passes on, without the text around it."""
    names = ("token_merging", "LlamaModel.layer_prune")
    made = definitions(checkout, INSIDE, *names, torch=torch, F=functional, fps=fps, IGNORE_INDEX=-100)
    prompt = torch.cat([torch.ones(1, BEFORE, WIDTH), states, torch.ones(1, AFTER, WIDTH)], 1)
    wanted = SimpleNamespace(
        config=SimpleNamespace(tokenizer_model_max_length=2048),
        image_token_list=[case["tokens"], case["keep"]],
        image_tokens=[VISUAL],
        image_token_posi=[BEFORE],
        basis_token_num=case["basis"],
    )
    _, _, passed, _ = made["layer_prune"](wanted, 0, 16, prompt, None, None, None, None, None, None)
    assert passed.shape[1] == BEFORE + case["keep"] + AFTER
    return {"merged": rounded(passed[0, BEFORE:-AFTER].double() @ line(WIDTH))}


def theirs_on_qwen(checkout: Path, case: Case, fps: Any, states: Tensor) -> Result:
    """The lines of `forward` that select and merge, with the names that they read."""
    merging = definitions(checkout, QWEN_UTILS, "token_merging", torch=torch, F=functional)["token_merging"]
    names = statements(
        checkout,
        QWEN,
        *QWEN_LINES,
        torch=torch,
        fps=fps,
        token_merging=merging,
        visual_token_ratio=(case["keep"] + 0.5) / case["tokens"],
        n_image_tokens=case["tokens"],
        mask=torch.ones(1, case["tokens"], dtype=torch.bool),
        image_embeds=states[0],
        self=SimpleNamespace(model=SimpleNamespace(basis_token_num=case["basis"])),
    )
    merged = names["image_embeds"].double() @ line(WIDTH)
    return {"kept": names["keep_indices"].tolist(), "merged": rounded(merged)}


def ours(case: Case) -> Result:
    """Our `apet` with the fields of the stage."""
    states = inputs(case)["states"]
    share = random_shares([[1]], [0], case["seed"], 1)
    assert (share * case["tokens"]).long().tolist() == [case["start"]]
    if case["stage"] == "tower":
        seen = layer(states[..., 0], states)
        tower = {-2: TowerTensors(seen.attention, seen.received, seen.key, states, lambda features: 2 * features)}
        fields: dict[str, Any] = {}
        ctx = context(2 * states, case["keep"], tower)
    else:
        fields = FIELDS[case["stage"]]
        ctx = context(states, case["keep"], {})
    selection = Apet(basis=case["basis"], seed=case["seed"], **fields).select(ctx)
    assert selection.hidden is not None
    merged = {"merged": rounded(selection.hidden[selection.keep].double() @ line(WIDTH))}
    return merged if case["stage"] == "inside" else {"kept": marked(selection.keep), **merged}
