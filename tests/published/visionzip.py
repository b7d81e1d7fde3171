"""VisionZip: the `forward` of its tower and `encode_images_visionzip`, around a tower that returns the case's tensors.

The projector is a small one of LLaVA's form, with random weights. `dominant` is the number of patches; the class token,
which the authors' code keeps in addition, is left out. Recorded are the dominant patches, and one number for every
contextual token, of what the projector makes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.functional import gelu

from tests.published.llava import VISUAL, Tower, context, line, marked, model
from tests.published.load import definitions
from tests.published.source import Case, Result, Source, rounded
from tokenprune.pruners.visionzip import VisionZip
from tokenprune.testing import TowerTensors

SOURCE = Source(
    "dvlab-research/VisionZip",
    "3151f6df4fca36a4cd1c985e5956e725b1f9ad02",
    "visionzip/clip_encoder.py",
    "31-85",
)
ENCODE = "visionzip/llava_arch.py"
HEADS, WIDTH, KEY, DIM = 4, 32, 16, 48
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
    key = torch.randn(1, VISUAL + 1, KEY, generator=noise)
    first, second = torch.randn(WIDTH, DIM, generator=noise), torch.randn(DIM, DIM, generator=noise)
    return {"attention": attention, "states": states, "key": key, "first": first, "second": second}


def projector(given: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """Two matrices and a GELU."""
    return lambda features: gelu(features @ given["first"]) @ given["second"]


def theirs(checkout: Path, case: Case) -> Result:
    """What enters the language model: the class token, dominant patches, contextual tokens."""
    forward = definitions(checkout, SOURCE.file, "CLIPVisionTower_VisionZip.forward", torch=torch)["forward"]
    encode = definitions(checkout, ENCODE, "encode_images_visionzip_multi")["encode_images_visionzip_multi"]
    given = inputs(case)
    tower = Tower(given["attention"], given["states"], given["key"], **{name: case[name] for name in SETTINGS})
    wanted = model(SimpleNamespace(forward=lambda images: forward(tower, images)), projector(given))
    states, indices = encode(wanted, torch.zeros(1))
    contextual = states[0, case["dominant"] + 1 :]
    return {
        "dominant": sorted(index - 1 for index in indices[0].tolist() if index > 0),
        "contextual": rounded(contextual.double() @ line(DIM)),
    }


def ours(case: Case) -> Result:
    """Our `visionzip`: once without contextual tokens for the dominant ones, and once with them."""
    given = inputs(case)
    features = given["states"][:, 1:]
    attention = given["attention"].mean(1)[:, 0, 1:]
    tower = {-2: TowerTensors(attention, attention, given["key"][:, 1:], features, projector(given))}
    count = case["dominant"] + case["contextual"]
    projected = projector(given)(features)
    dominant = VisionZip(contextual=0).select(context(projected, case["dominant"], tower)).keep
    selection = VisionZip(contextual=case["contextual"] / count).select(context(projected, count, tower))
    assert selection.hidden is not None
    contextual = selection.hidden[selection.keep & ~dominant]
    return {"dominant": marked(dominant), "contextual": rounded(contextual.double() @ line(DIM))}
