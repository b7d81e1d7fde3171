"""DART: `get_retained_image_token` of LightCompress, which follows the authors' repository.

The code visits the pivots in the order in which a Python set lists them, that is, by an accident of hash tables. In the
cases without `differs` a set that keeps the order of insertion stands in for it: image pivots, then text pivots, each
by descending norm, as ours. Both get the same states; that the code applies the decoder's final norm to them first is
outside of this function. Kept are ``8 floor(N (1 - r) / 8)`` tokens besides the four image pivots.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from tests.published.load import definitions
from tests.published.source import Case, Result, Source
from tokenprune.pruners.dart import Dart
from tokenprune.testing import make_context

SOURCE = Source(
    "ModelTC/LightCompress",
    "9701d035b0aac5df97a2ebaadb30bcf0707616f5",
    "llmc/compression/token_reduction/dart.py",
    "123-179",
)
SYSTEM, VISUAL, HEADS, DIM, WIDTH, PIVOTS = 35, 576, 4, 16, 32, 4
CASES: list[Case] = [
    {"seed": seed, "text": text, "reduction": reduction}
    for seed, text in ((0, 40), (1, 24), (2, 9), (3, 61), (4, 17), (5, 33))
    for reduction in (0.5, 0.667, 0.778, 0.889)
]
CASES.append({**CASES[2], "differs": "it visits the pivots in the order of a Python set, ours by descending norm"})


def inputs(case: Case) -> dict[str, Tensor]:
    """States ``[1, rows, width]`` and keys ``[1, rows, heads, dim]``."""
    noise = torch.Generator().manual_seed(case["seed"])
    rows = SYSTEM + VISUAL + case["text"]
    hidden = torch.randn(1, rows, WIDTH, generator=noise)
    return {"hidden": hidden, "key": torch.randn(1, rows, HEADS, DIM, generator=noise)}


class Ordered:
    """A set that lists its elements in the order in which they came."""

    def __init__(self, elements: Iterable[int]) -> None:
        self.elements = dict.fromkeys(elements)

    def __iter__(self) -> Iterable[int]:
        return iter(self.elements)

    def __sub__(self, other: Ordered) -> Ordered:
        return Ordered(element for element in self.elements if element not in other.elements)

    def update(self, elements: Iterable[int]) -> None:
        """Add elements."""
        self.elements.update(dict.fromkeys(elements))

    def difference_update(self, elements: Iterable[int]) -> None:
        """Remove elements."""
        for element in elements:
            self.elements.pop(element, None)


def theirs(checkout: Path, case: Case) -> Result:
    """The image tokens that are retained."""
    states = inputs(case)
    ordered = {} if "differs" in case else {"set": Ordered}
    retained = definitions(checkout, SOURCE.file, "get_retained_image_token", torch=torch, **ordered)[
        "get_retained_image_token"
    ](
        {
            "vision_token_start_index": SYSTEM,
            "vision_token_length": VISUAL,
            "pivot_image_token": PIVOTS,
            "pivot_text_token": PIVOTS,
            "reduction_ratio": case["reduction"],
        },
        states["hidden"],
        states["key"].transpose(1, 2),
    )
    return {"kept": sorted(int(index) - SYSTEM for index in retained)}


def ours(case: Case) -> Result:
    """Our `dart` with the same count."""
    states = inputs(case)
    rows = states["hidden"].shape[1]
    visual = torch.zeros(1, rows, dtype=torch.bool)
    visual[:, SYSTEM : SYSTEM + VISUAL] = True
    keep = PIVOTS + 2 * PIVOTS * int(VISUAL * (1 - case["reduction"]) / (2 * PIVOTS))
    ctx = make_context(visual=visual, keep=keep, query=states["key"], **states)
    return {"kept": Dart().select(ctx).keep[0].nonzero()[:, 0].tolist()}
