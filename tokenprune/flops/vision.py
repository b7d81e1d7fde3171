"""FLOPs of vision towers and projectors in closed form; :mod:`tokenprune.flops.decoder` adds the decoder.

Families differ too much for one formula: each has a function of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenprune.errors import ConfigError, UnsupportedModelError


@dataclass(frozen=True)
class TowerShape:
    """The sizes of a vision tower's states.

    Attributes:
        width: Size of the states that leave a layer.
        heads: Number of heads.
        head_dim: Size of one head.
    """

    width: int
    heads: int
    head_dim: int

    @classmethod
    def of(cls, config: Any) -> TowerShape | None:
        """Read the shape of a model's vision tower; None where its config does not state it.

        Args:
            config: A model's config.
        """
        vision = getattr(config, "vision_config", None)
        # Qwen2-VL's hidden_size is that of the language model
        width = getattr(vision, "embed_dim", None) or getattr(vision, "hidden_size", None)
        heads = getattr(vision, "num_attention_heads", None) or getattr(vision, "num_heads", None)
        if not isinstance(width, int) or not isinstance(heads, int):
            return None
        return cls(width, heads, int(getattr(vision, "head_dim", None) or width // heads))


def vision_flops(config: Any, visual_tokens: int) -> tuple[int, int]:
    """Vision tower and projector of one sample.

    Args:
        config: A model's config.
        visual_tokens: Visual tokens of all images of the sample.

    Returns:
        FLOPs of (tower, projector).

    Raises:
        UnsupportedModelError: No closed form for this family's tower.
        ConfigError: The family's images do not make that many visual tokens.
    """
    if visual_tokens == 0:
        return 0, 0
    if config.model_type not in _VISION:
        raise UnsupportedModelError(
            f"no closed form for the vision tower of {config.model_type!r} (there is one for {', '.join(_VISION)})",
            "count the decoder alone (a budget's `scope: decoder`), or use tokenprune.measure.counted",
        )
    return _VISION[config.model_type](config, visual_tokens)


def _vit(config: Any, patches: int) -> int:
    """One image through CLIP, SigLIP or DINOv2. All layers run, whichever layer the features are read from."""
    width = int(config.hidden_size)
    tokens = patches + (0 if config.model_type == "siglip_vision_model" else 1)  # the class token
    embedding = 2 * patches * int(config.num_channels) * int(config.patch_size) ** 2 * width
    if config.model_type == "dinov2":
        hidden, matrices = int(width * config.mlp_ratio), 2
        if config.use_swiglu_ffn:  # rounded up to a multiple of 8, as transformers does
            hidden, matrices = (int(hidden * 2 / 3) + 7) // 8 * 8, 3
    else:
        hidden, matrices = int(config.intermediate_size), 2
    layer = 8 * tokens * width**2 + 4 * tokens**2 * width + 2 * matrices * tokens * width * hidden
    return embedding + int(config.num_hidden_layers) * layer


#: Towers that :func:`_vit` describes.
_VITS = ("clip_vision_model", "siglip_vision_model", "dinov2")


def _llava(config: Any, visual_tokens: int) -> tuple[int, int]:
    """Images of one size each; every patch becomes a visual token.

    The size is the tower's input size. DINOv2 takes images of any size; there the config states the tokens per image.
    """
    vision, width = config.vision_config, int(config.text_config.hidden_size)
    if vision.model_type not in _VITS:
        raise UnsupportedModelError(
            f"no closed form for the vision tower {vision.model_type!r} (there is one for {', '.join(_VITS)})",
            "count the decoder alone (a budget's `scope: decoder`), or use tokenprune.measure.counted",
        )
    patches = (int(vision.image_size) // int(vision.patch_size)) ** 2
    if vision.model_type == "dinov2":
        patches = int(getattr(config, "image_seq_length", None) or patches)
    if config.model_type == "llava" and visual_tokens % patches:
        raise ConfigError(
            f"{visual_tokens} visual tokens: every image makes {patches}",
            f"use a multiple of {patches}, or count the decoder alone (a budget's `scope: decoder`)",
        )
    tiles = max(1, round(visual_tokens / patches))  # LLaVA-NeXT adds newline tokens and cuts off padding
    layers = config.vision_feature_layer
    features = int(vision.hidden_size) * (len(layers) if isinstance(layers, list | tuple) else 1)
    return tiles * _vit(vision, patches), 2 * tiles * patches * width * (features + width)


def _qwen_vl(config: Any, visual_tokens: int) -> tuple[int, int]:
    """Images in native resolution: most blocks attend within windows; 2 x 2 patches become one visual token."""
    vision = config.vision_config
    width, merge, depth = int(vision.hidden_size), int(vision.spatial_merge_size), int(vision.depth)
    rows = max(side for side in range(1, math.isqrt(visual_tokens) + 1) if visual_tokens % side == 0)
    columns = visual_tokens // rows  # the most square image of that many tokens
    patches = visual_tokens * merge**2
    window = int(vision.window_size) // int(vision.patch_size) // merge
    pairs = merge**4 * _sum_of_squares(rows, window) * _sum_of_squares(columns, window)
    full = len(vision.fullatt_block_indexes)
    attention = 4 * width * (full * patches**2 + (depth - full) * pairs)
    linear = depth * (8 * patches * width**2 + 6 * patches * width * int(vision.intermediate_size))
    pixels = int(vision.in_channels) * int(vision.temporal_patch_size) * int(vision.patch_size) ** 2
    merged = width * merge**2
    projector = 2 * visual_tokens * merged * (merged + int(vision.out_hidden_size))
    return attention + linear + 2 * patches * pixels * width, projector


def _sum_of_squares(length: int, window: int) -> int:
    """Sum of the squared sizes of the windows that a side of ``length`` is cut into."""
    full_windows, remainder = divmod(length, window)
    return full_windows * window**2 + remainder**2


_VISION: Mapping[str, Callable[[Any, int], tuple[int, int]]] = {
    "llava": _llava,
    "llava_next": _llava,
    "vipllava": _llava,
    "qwen2_5_vl": _qwen_vl,
}
