"""MiniCPM-V: images as strips of patches, and a hybrid stack that may be pruned behind its last recurrent layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.tiny.core import (
    END,
    FLAT_BEAMS,
    IMAGE,
    START,
    VIDEO,
    TinyCase,
    Visual,
    token_types,
    unchanged,
    visual,
)
from tests.support.tiny.parts import PATCHES, make, pixels
from tests.support.tiny.qwen import GRIDS, LINEAR

SETTINGS: dict[str, Any] = {
    "vision_config": PATCHES,
    "text_config": {**LINEAR, "model_type": "qwen3_5_text"},
    "insert_layer_id": 0,
    "downsample_mode": "4x",
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
}
MARKERS: dict[str, Any] = {
    "image_start_id": START,
    "image_end_id": END,
    "slice_start_id": 154,
    "slice_end_id": 155,
    "newline_id": 156,
}
"""Multimodal rotary positions are laid out between these tokens (4.7)."""


def strip_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """Patches of 4 x 4 pixels in one row, with the shape of the image; four are a token."""
    _, height, width = GRIDS[size]
    values = pixels(noise, 1, 3, 4, 4 * height * width)
    shape = torch.tensor([[height, width]])
    return visual(height * width // 4, IMAGE, [START], [END], pixel_values=values, target_sizes=shape)


def join_strips(samples: list[list[Visual]]) -> dict[str, Tensor]:
    """All images in one strip."""
    flat = [v.tensors for sample in samples for v in sample]
    if not flat:
        return {}
    return {
        "pixel_values": torch.cat([one["pixel_values"] for one in flat], -1),
        "target_sizes": torch.cat([one["target_sizes"] for one in flat]),
    }


CASES = [
    TinyCase(
        name,
        make(f"{prefix}ForConditionalGeneration", f"{prefix}Config", **SETTINGS, **ids),
        strip_visual,
        join=join_strips,
        finish=token_types("mm_token_type_ids") if ids else unchanged,
        hybrid=True,
        slack=20,
        beams=FLAT_BEAMS,
        since=since,
    )
    for name, prefix, since, ids in (
        ("minicpmv4_6", "MiniCPMV4_6", (5, 17), {}),
        ("minicpmv4_7", "MiniCPMV4_7", (5, 24), MARKERS),
        ("minicpm_ocr", "MiniCPMOcr", (5, 24), {}),
    )
]
