"""Families with a dynamic-resolution tower and multimodal rotary positions: Qwen2-VL, 2.5, 3, and their kin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers as tf
from transformers import PreTrainedModel

from tests.support.tiny.core import END, IMAGE, START, VIDEO, TinyCase, Variant, Visual, token_types, visual
from tests.support.tiny.parts import MROPE, pixels, text

GRIDS = [(1, 8, 8), (1, 4, 8), (1, 8, 12)]
VIDEO_GRIDS = [(3, 4, 4), (20, 4, 4), (16, 4, 4)]
"""The time axis of the second and the third runs past the text behind them."""
TOWER: dict[str, Any] = {
    "depth": 2,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
IDS: dict[str, int] = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
PATCH = 3 * 2 * 4 * 4


def grid_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """Patches of one of GRIDS or VIDEO_GRIDS; four patches are one token."""
    grid = torch.tensor([(VIDEO_GRIDS if kind == "video" else GRIDS)[size]])
    patches = int(grid.prod())
    values = pixels(noise, patches, PATCH)
    if kind == "video":
        return visual(patches // 4, VIDEO, [START], [END], pixel_values_videos=values, video_grid_thw=grid)
    return visual(patches // 4, IMAGE, [START], [END], pixel_values=values, image_grid_thw=grid)


def framewise_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """Like `grid_visual`, but the frames of a video stand apart, each after a timestamp (Qwen3-VL)."""
    if kind != "video":
        return grid_visual(model, kind, size, noise)
    frames, rows, columns = VIDEO_GRIDS[size]
    frame = rows * columns // 4
    parts = tuple(part for t in range(frames) for part in ((10 + t, 2), (START, 1), (VIDEO, frame), (END, 1)))
    tensors = {
        "pixel_values_videos": pixels(noise, 4 * frames * frame, PATCH),
        "video_grid_thw": torch.tensor([VIDEO_GRIDS[size]]),
    }
    return Visual(parts, (frame,) * frames, tensors)


def qwen2_model() -> PreTrainedModel:
    config = tf.Qwen2VLConfig(
        text_config=text(None, rope_parameters=MROPE),
        vision_config={
            **{k: v for k, v in TOWER.items() if k != "intermediate_size"},
            "embed_dim": 32,
            "hidden_size": 64,
            "mlp_ratio": 2,
        },
        **IDS,
    )
    return tf.Qwen2VLForConditionalGeneration(config)


def qwen25_model() -> PreTrainedModel:
    config = tf.Qwen2_5_VLConfig(
        text_config=text(None, rope_parameters=MROPE),
        vision_config={
            **TOWER,
            "hidden_size": 32,
            "out_hidden_size": 64,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        **IDS,
    )
    return tf.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_tower(**more: Any) -> dict[str, Any]:
    return {**TOWER, "hidden_size": 32, "out_hidden_size": 64, "num_position_embeddings": 64, **more}


def qwen3_model() -> PreTrainedModel:
    config = tf.Qwen3VLConfig(
        text_config=text(None, head_dim=16, rope_parameters=MROPE),
        vision_config=qwen3_tower(depth=3, deepstack_visual_indexes=[0, 1]),
        **IDS,
    )
    return tf.Qwen3VLForConditionalGeneration(config)


def qwen3_moe_model() -> PreTrainedModel:
    config = tf.Qwen3VLMoeConfig(
        text_config=text(
            None, head_dim=16, rope_parameters=MROPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
        ),
        vision_config=qwen3_tower(depth=3, deepstack_visual_indexes=[0, 1]),
        **IDS,
    )
    return tf.Qwen3VLMoeForConditionalGeneration(config)


LINEAR: dict[str, Any] = text(
    None,
    layers=8,
    head_dim=16,
    linear_key_head_dim=16,
    linear_value_head_dim=16,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    partial_rotary_factor=1.0,
    rope_parameters={**MROPE, "partial_rotary_factor": 1.0},
)
"""A hybrid stack: three linear-attention layers, then a full one, twice."""


def qwen35_model() -> PreTrainedModel:
    config = tf.Qwen3_5Config(text_config=LINEAR, vision_config=qwen3_tower(), **IDS)
    return tf.Qwen3_5ForConditionalGeneration(config)


def qwen35_moe_model() -> PreTrainedModel:
    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    }
    config = tf.Qwen3_5MoeConfig(text_config={**LINEAR, **experts}, vision_config=qwen3_tower(), **IDS)
    return tf.Qwen3_5MoeForConditionalGeneration(config)


def glm4v_model() -> PreTrainedModel:
    config = tf.Glm4vConfig(
        text_config=text(None, rope_parameters={**MROPE, "partial_rotary_factor": 1.0}),
        vision_config={**TOWER, "hidden_size": 32, "out_hidden_size": 64, "image_size": 32},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=START,
        image_end_token_id=END,
        video_start_token_id=154,
        video_end_token_id=155,
    )
    return tf.Glm4vForConditionalGeneration(config)


def ernie_model(experts: Sequence[int] = (32, 32)) -> PreTrainedModel:
    """Experts of text and of visual tokens, hidden sizes given."""
    language = text(
        None,
        rope_parameters={**MROPE, "mrope_section": [3, 3, 2]},
        moe_num_experts=4,
        moe_k=2,
        moe_num_shared_experts=1,
        moe_intermediate_size=list(experts),
    )
    config = tf.Ernie4_5_VLMoeConfig(
        text_config=language,
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=START,
        image_end_token_id=END,
        video_start_token_id=154,
        video_end_token_id=155,
    )
    return tf.Ernie4_5_VLMoeForConditionalGeneration(config)


def ernie_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """Patches have no time axis here."""
    grid = torch.tensor([GRIDS[size]])
    patches = int(grid.prod())
    return visual(
        patches // 4, IMAGE, [START], [END], pixel_values=pixels(noise, patches, PATCH // 2), image_grid_thw=grid
    )


ALL: tuple[Variant, ...] = ("image", "multi", "ragged", "video", "text")
TYPES = token_types("mm_token_type_ids")
CASES = [
    TinyCase("qwen2_vl", qwen2_model, grid_visual, ALL, (IMAGE, VIDEO), finish=TYPES, core=True),
    TinyCase("qwen2_5_vl", qwen25_model, grid_visual, ALL, (IMAGE, VIDEO), finish=TYPES, core=True),
    TinyCase("qwen3_vl", qwen3_model, framewise_visual, ALL, (IMAGE, VIDEO), finish=TYPES, core=True),
    TinyCase("qwen3_vl_moe", qwen3_moe_model, framewise_visual, ALL, (IMAGE, VIDEO), finish=TYPES),
    TinyCase("qwen3_5", qwen35_model, framewise_visual, ALL, (IMAGE, VIDEO), finish=TYPES, hybrid=True, slack=20),
    TinyCase(
        "qwen3_5_moe", qwen35_moe_model, framewise_visual, ALL, (IMAGE, VIDEO), finish=TYPES, hybrid=True, slack=20
    ),
    TinyCase("glm4v", glm4v_model, grid_visual, finish=TYPES, beams=False),
    TinyCase("ernie4_5_vl", ernie_model, ernie_visual, finish=TYPES),
]
