"""The vision tower's attention of every image, from the maps that the tower itself makes with eager attention."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.literal import Seen
from tests.support.tiny import CASES


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


def eager_maps(model: Any, attention: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """All maps that one attention module makes in a forward of the unpruned model, ``[images, heads, n, n]`` each.

    Towers with windows make one per window. The model has to be built with eager attention.
    """
    home = sys.modules[type(attention).__module__]
    own = home.eager_attention_forward  # type: ignore[attr-defined]
    found: list[Tensor] = []

    def record(module: Any, *args: Any, **kwargs: Any) -> Any:
        made = own(module, *args, **kwargs)
        if module is attention:
            found.append(made[1].double())
        return made

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(home, "eager_attention_forward", record)
        model(**inputs)
    return found


def made_by(model: Any, module: Any, inputs: dict[str, Tensor]) -> Tensor:
    """What a module of the tower makes in a forward of the unpruned model, in float64."""
    found: list[Tensor] = []
    hook = module.register_forward_hook(lambda *seen: found.append(seen[2].double()))
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return found[0]
