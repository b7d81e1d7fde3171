"""VisionZip: `CLIPVisionTower_VisionZip.forward` around a tower that returns the case's tensors.

The authors count the class token as dominant: with their setting `dominant`, one patch less is dominant. Recorded are
the dominant patches, and one projection of every contextual token's state. They merge before the projector, we after
it: here the projector changes nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.published.llava import VISUAL, Tower, context, layer, line, marked
from tests.published.load import definitions
from tests.published.source import Case, Result, Source, rounded
from tokenprune.pruners.visionzip import VisionZip

SOURCE = Source(
    "dvlab-research/VisionZip",
    "3151f6df4fca36a4cd1c985e5956e725b1f9ad02",
    "visionzip/clip_encoder.py",
    "31-85",
)
HEADS, WIDTH, KEY = 4, 32, 16
SETTINGS = ("dominant", "contextual")
CASES: list[Case] = [
    {"seed": seed, "dominant": dominant, "contextual": contextual}
    for seed in range(4)
    for dominant, contextual in ((162, 30), (108, 20), (54, 10), (40, 24))
]


def inputs(case: Case) -> dict[str, Tensor]:
    """Attention of the class token ``[1, heads, 1, rows]``, states and keys ``[1, rows, ...]``; row 0 is that token."""
    noise = torch.Generator().manual_seed(case["seed"])
    attention = torch.randn(1, HEADS, 1, VISUAL + 1, generator=noise).softmax(-1)
    states = torch.randn(1, VISUAL + 1, WIDTH, generator=noise)
    return {"attention": attention, "states": states, "key": torch.randn(1, VISUAL + 1, KEY, generator=noise)}


def theirs(checkout: Path, case: Case) -> Result:
    """What the tower returns: the class token, dominant patches, contextual tokens."""
    forward = definitions(checkout, SOURCE.file, "CLIPVisionTower_VisionZip.forward", torch=torch)["forward"]
    given = inputs(case)
    tower = Tower(given["attention"], given["states"], given["key"], **{name: case[name] for name in SETTINGS})
    states, indices = forward(tower, torch.zeros(1))
    contextual = states[0, case["dominant"] + 1 :]
    return {
        "dominant": sorted(index - 1 for index in indices[0].tolist() if index > 0),
        "contextual": rounded(contextual.double() @ line(WIDTH)),
    }


def ours(case: Case) -> Result:
    """Our `visionzip`: once without contextual tokens for the dominant ones, and once with them."""
    given = inputs(case)
    states = given["states"][:, 1:]
    tower = {-2: layer(given["attention"].mean(1)[:, 0, 1:], states, given["key"][:, 1:])}
    count = case["dominant"] + case["contextual"]
    dominant = VisionZip(contextual=0).select(context(states, case["dominant"], tower)).keep
    selection = VisionZip(contextual=case["contextual"] / count).select(context(states, count, tower))
    assert selection.hidden is not None
    contextual = selection.hidden[selection.keep & ~dominant]
    return {"dominant": marked(dominant), "contextual": rounded(contextual.double() @ line(WIDTH))}
