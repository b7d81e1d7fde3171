"""The models of the tables without their weights: configs, and modules on the device ``meta``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tokenprune.errors import ConfigError
from tokenprune.flops.decoder import Shape, shapes_of
from tokenprune.flops.vision import vision_flops
from tokenprune.measure.counted import count_flops
from tokenprune.models.presets import PRESETS

#: Frames that Video-LLaVA takes from a video.
FRAMES = 8


@dataclass(frozen=True)
class Architecture:
    """A model without weights.

    Attributes:
        model: The module, on the device ``meta``.
        parameters: Number of its parameters.
        decoder_parameters: Those that a decode step reads: the language model with its output head, without the
            embedding of the tokens.
        vision: FLOPs of tower and projector for a number of visual tokens.
        shapes: The shape of each decoder layer.
    """

    model: Any
    parameters: int
    decoder_parameters: int
    vision: Callable[[int], int]
    shapes: tuple[Shape, ...]

    @property
    def config(self) -> Any:
        """Its config."""
        return self.model.config


def _of_preset(name: str) -> Architecture:
    model = PRESETS[name].build("meta", torch.bfloat16)
    config = model.config
    return _counted(model, lambda visual: sum(vision_flops(config, visual)))


def _video_llava() -> Architecture:
    """Video-LLaVA-7B: what transformers' config has by default, around the Vicuna-7B of LLaVA-1.5."""
    config = AutoConfig.for_model("video_llava", text_config=dict(PRESETS["llava-1.5-7b"].numbers["text_config"]))
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    size = config.vision_config.image_size
    frames = torch.empty(1, FRAMES, 3, size, size, device="meta", dtype=torch.bfloat16)
    flops = count_flops(partial(model.model.get_video_features, pixel_values_videos=frames))
    return _counted(model, lambda visual: flops if visual else 0)  # tower and projector see all frames


def _counted(model: Any, vision: Callable[[int], int]) -> Architecture:
    embedding = model.get_input_embeddings().weight.numel()
    decoder = sum(parameter.numel() for parameter in model.get_decoder().parameters()) - embedding
    head = model.get_output_embeddings().weight.numel()
    text = model.config.get_text_config(decoder=True)
    shapes = shapes_of(text, int(text.num_hidden_layers))
    return Architecture(model, sum(item.numel() for item in model.parameters()), decoder + head, vision, shapes)


_BUILDERS: Mapping[str, Callable[[], Architecture]] = {
    **{name: partial(_of_preset, name) for name in ("llava-1.5-7b", "llava-next-7b", "qwen2.5-vl-7b")},
    "video-llava-7b": _video_llava,
}


def architecture(name: str) -> Architecture:
    """The architecture of a name.

    Raises:
        ConfigError: There is none.
    """
    if name not in _BUILDERS:
        raise ConfigError(f"there is no architecture {name!r}", f"there are {', '.join(_BUILDERS)}")
    return _BUILDERS[name]()
