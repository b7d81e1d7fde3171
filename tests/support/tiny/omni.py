"""Families that also hear, or that drive: the part of them that reads images, videos and text."""

from __future__ import annotations

from typing import Any

from tests.support.tiny.core import END, FLAT_BEAMS, IMAGE, START, VIDEO, TinyCase, token_types
from tests.support.tiny.parts import MROPE, PATCHES, make, text
from tests.support.tiny.qwen import ALL, IDS, TOWER, ernie_visual, framewise_visual, grid_visual, qwen3_tower

HEARING: dict[str, Any] = {
    "num_mel_bins": 8,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "d_model": 32,
    "max_source_positions": 16,
    "n_window": 4,
    "output_dim": 64,
}
START_IDS: dict[str, int] = {
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "audio_start_token_id": 157,
    "audio_end_token_id": 158,
    "user_token_id": 159,
}

qwen25_thinker = make(
    "Qwen2_5OmniThinkerForConditionalGeneration",
    "Qwen2_5OmniThinkerConfig",
    text_config=text(None, rope_parameters=MROPE),
    vision_config={
        **TOWER,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    },
    audio_config=HEARING,
    image_token_index=IMAGE,
    video_token_index=VIDEO,
    audio_token_index=156,
    **START_IDS,
)
qwen3_thinker = make(
    "Qwen3OmniMoeThinkerForConditionalGeneration",
    "Qwen3OmniMoeThinkerConfig",
    text_config=text(
        None, head_dim=16, rope_parameters=MROPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    ),
    vision_config=qwen3_tower(depth=3, deepstack_visual_indexes=[0, 1]),
    audio_config={**HEARING, "downsample_hidden_size": 8},
    image_token_id=IMAGE,
    video_token_id=VIDEO,
    audio_token_id=156,
    **START_IDS,
)
cosmos_omni = make(
    "Cosmos3OmniForConditionalGeneration",
    "Cosmos3OmniConfig",
    text_config=text("qwen3_vl_text", head_dim=16, rope_parameters=MROPE),
    vision_config=qwen3_tower(model_type="qwen3_vl_vision", depth=3, deepstack_visual_indexes=[0, 1]),
    **IDS,
)
cosmos_edge = make(
    "Cosmos3EdgeForConditionalGeneration",
    "Cosmos3EdgeConfig",
    text_config=text(None, head_dim=16, rope_parameters=MROPE),
    vision_config={**{k: v for k, v in PATCHES.items() if k != "image_size"}, "num_patches": 64},
    projector_hidden_size=64,
    **IDS,
)

TYPES = token_types("mm_token_type_ids")
CASES = [
    TinyCase("qwen2_5_omni_thinker", qwen25_thinker, grid_visual, beams=FLAT_BEAMS),
    TinyCase("qwen3_omni_moe_thinker", qwen3_thinker, grid_visual, beams=FLAT_BEAMS),
    TinyCase("cosmos3_omni", cosmos_omni, framewise_visual, ALL, (IMAGE, VIDEO), finish=TYPES),
    TinyCase("cosmos3_edge", cosmos_edge, ernie_visual, finish=TYPES),
]
