"""Attention and outputs of the vision tower, recorded from the unpruned model."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.literal import Recording
from tests.support.tiny import CASES


def attention(recording: Recording, name: str, layer: int, everyone: bool = False) -> list[list[list[float]]]:
    """Attention that each token's patch receives, by sample and image, in float64.

    Args:
        recording: The prompts.
        name: Name of the tiny model; its tower has a class token.
        layer: Layer of the tower.
        everyone: Whether to average the attention of all tokens, instead of taking the class token's.
    """
    model: Any = CASES[name].build("eager")
    with torch.no_grad():
        maps = model.model.vision_tower(recording.inputs["pixel_values"], output_attentions=True).attentions[layer]
    heads = maps.double().mean(1)
    rows = iter((heads.mean(1) if everyone else heads[:, 0])[:, 1:].tolist())
    return [[next(rows) for _ in images] for images in recording.image_positions]


def features(recording: Recording, name: str, layer: int) -> list[list[list[Tensor]]]:
    """States that leave a layer of the tower, for each token's patch, by sample and image, in float64.

    Args:
        recording: The prompts.
        name: Name of the tiny model; its tower has a class token.
        layer: Layer of the tower.
    """
    model: Any = CASES[name].build("eager")
    tower = model.model.vision_tower
    outputs: list[Tensor] = []

    def keep_output(module: Any, args: Any, output: Any) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output).double())

    hook = getattr(tower, "vision_model", tower).encoder.layers[layer].register_forward_hook(keep_output)
    with torch.no_grad():
        tower(recording.inputs["pixel_values"])
    hook.remove()
    rows = iter(outputs[0][:, 1:])
    return [[list(next(rows)) for _ in images] for images in recording.image_positions]


def eager_maps(model: Any, attention: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Attention maps of one attention module in a forward pass, ``[images, heads, n, n]`` each, float64.

    Towers with windows compute one map per window. The model must be built with eager attention.
    """
    modeling = sys.modules[type(attention).__module__]
    original = modeling.eager_attention_forward  # type: ignore[attr-defined]
    maps: list[Tensor] = []

    def record_map(module: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(module, *args, **kwargs)
        if module is attention:
            maps.append(result[1].double())
        return result

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(modeling, "eager_attention_forward", record_map)
        model(**inputs)
    return maps


def output_of(model: Any, module: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Output of a module in a forward pass of the unpruned model, in float64."""
    outputs: list[Tensor] = []
    hook = module.register_forward_hook(lambda module, args, output: outputs.append(output.double()))
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return outputs[0]
