"""VisPruner: `LlavaMetaForCausalLM.encode_images` around a tower that returns the case's tensors.

Their code is run in float64. In half precision, in which the model runs, rounding decides its rankings, and every round
depends on the order that the round before left; one case is recorded in float16 and documents that. Ours computes
cosines in float32, whose rounding is about 1e-7: the seeds are some at which no two scores of a ranking are closer than
1e-6. Nothing ties then, which their `argsort` would leave open.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.published.llava import VISUAL, context, layer, marked, model
from tests.published.load import definitions
from tests.published.source import Case, Result, Source
from tokenprune.pruners.vispruner import VisPruner

SOURCE = Source(
    "Theia-4869/VisPruner",
    "aefa01adc7c7ce6334e880c88225e90cede760d1",
    "llava/model/llava_arch.py",
    "141-186",
)
HEADS, WIDTH, CLUSTERS = 4, 16, 40
SEEDS = {(192, 0.5): (10, 26, 84), (128, 0.5): (11, 30, 91), (64, 0.5): (61, 88, 109), (32, 0.75): (53, 84, 91)}
CASES: list[Case] = [
    *(
        {"seed": seed, "keep": keep, "important": important}
        for (keep, important), seeds in SEEDS.items()
        for seed in seeds
    ),
    {"seed": 88, "keep": 64, "important": 0.5, "differs": "theirs in float16: rounding decides the rankings"},
]


def inputs(case: Case) -> dict[str, Tensor]:
    """Attention of the class token ``[1, heads, tokens]`` and states ``[1, tokens, width]``: clusters, and noise."""
    noise = torch.Generator().manual_seed(case["seed"])
    attention = torch.randn(1, HEADS, VISUAL, generator=noise).softmax(-1)
    clusters = torch.randn(CLUSTERS, WIDTH, generator=noise)
    member = torch.randint(0, CLUSTERS, (VISUAL,), generator=noise)
    spread = 1.5 * torch.rand(VISUAL, 1, generator=noise)
    states = clusters[member] + spread * torch.randn(VISUAL, WIDTH, generator=noise)
    return {"attention": attention, "states": states[None]}


def theirs(checkout: Path, case: Case) -> Result:
    """The mask that goes with the features."""
    encode = definitions(checkout, SOURCE.file, "LlavaMetaForCausalLM.encode_images", torch=torch)["encode_images"]
    dtype = torch.float16 if "differs" in case else torch.float64
    given = {name: values.to(dtype) for name, values in inputs(case).items()}
    wanted = model(
        lambda images, output_attentions: (given["states"], given["attention"]),
        get_visual_token_num=lambda: case["keep"],
        get_important_ratio=lambda: case["important"],
    )
    return {"kept": marked(encode(wanted, None)[1])}


def ours(case: Case) -> Result:
    """Our `vispruner`; the states that enter the language model are of no use to it."""
    given = inputs(case)
    tower = {-2: layer(given["attention"].mean(1), given["states"])}
    ctx = context(torch.ones(1, VISUAL, 2), case["keep"], tower)
    return {"kept": marked(VisPruner(important=case["important"]).select(ctx).keep)}
