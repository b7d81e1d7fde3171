"""GLM's multimodal models after GLM-4.1V: other decoders behind its tower and its multimodal rotary positions."""

from __future__ import annotations

from typing import Any

from tests.support.tiny.core import IMAGE, START, VIDEO, TinyCase, token_types
from tests.support.tiny.parts import MROPE, make, text
from tests.support.tiny.qwen import TOWER, grid_visual

IDS: dict[str, int] = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": START,
    "image_end_token_id": 153,
    "video_start_token_id": 154,
    "video_end_token_id": 155,
}
VISION: dict[str, Any] = {**TOWER, "hidden_size": 32, "out_hidden_size": 64, "image_size": 32}
ROPE: dict[str, Any] = {**MROPE, "partial_rotary_factor": 1.0}
EXPERTS: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}

glm46v = make(
    "Glm46VForConditionalGeneration",
    "Glm46VConfig",
    text_config=text("glm4v_text", rope_parameters=ROPE),
    vision_config={**VISION, "model_type": "glm4v_vision"},
    **IDS,
)
glmga = make(
    "Glm46VForConditionalGeneration",
    "GlmgaConfig",
    text_config=text("glm4v_text", rope_parameters=ROPE),
    vision_config={**VISION, "model_type": "glm4v_vision"},
    **IDS,
)
glm4v_moe = make(
    "Glm4vMoeForConditionalGeneration",
    "Glm4vMoeConfig",
    text_config=text(None, head_dim=16, rope_parameters=ROPE, **EXPERTS),
    vision_config=VISION,
    **IDS,
)
glm_ocr = make(
    "GlmOcrForConditionalGeneration",
    "GlmOcrConfig",
    text_config=text(None, head_dim=16, rope_parameters=ROPE),
    vision_config=VISION,
    **IDS,
)

CASES = [
    TinyCase(name, create, grid_visual, finish=token_types("mm_token_type_ids"), beams=False)
    for name, create in (("glm46v", glm46v), ("glmga", glmga), ("glm4v_moe", glm4v_moe), ("glm_ocr", glm_ocr))
]
