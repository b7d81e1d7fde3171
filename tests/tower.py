"""The vision tower's attention of every image, from the maps that the tower itself returns when asked."""

from __future__ import annotations

from typing import Any

import torch

from tests.literal import Seen
from tests.tiny import CASES


def attention(seen: Seen, name: str, layer: int, everyone: bool = False) -> list[list[list[float]]]:
    """Attention that each token's patch receives, by sample and image, in float64.

    Args:
        seen: The prompts.
        name: The tiny model; its tower has a class token.
        layer: Layer of the tower.
        everyone: From all tokens on average, and not only from the class token.
    """
    model: Any = CASES[name].build("eager")
    with torch.no_grad():
        maps = model.model.vision_tower(seen.inputs["pixel_values"], output_attentions=True).attentions[layer]
    heads = maps.double().mean(1)
    rows = iter((heads.mean(1) if everyone else heads[:, 0])[:, 1:].tolist())
    return [[next(rows) for _ in images] for images in seen.images]
