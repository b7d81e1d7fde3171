"""Families that are newer than the oldest supported transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.tiny.core import (
    FLAT_BEAMS,
    IMAGE,
    VIDEO,
    TinyCase,
    Visual,
    join_cat,
    join_padded,
    token_types,
    visual,
)
from tests.support.tiny.parts import GRANITE_ATTENTION, MOON, PATCHES, make, mixed, pixels, text
from tests.support.tiny.qwen import ALL, TOWER, grid_visual

WINDOW = 10

granite_docling = make(
    "GraniteDoclingForConditionalGeneration",
    "GraniteDoclingConfig",
    vision_config={
        **PATCHES,
        "out_hidden_size": 64,
        "scale_factor": 2,
        "deepstack_visual_indexes": [0, 1],
        "use_fine_route": False,
    },
    text_config=text(None, embedding_multiplier=2.0, residual_multiplier=0.5, **GRANITE_ATTENTION),
    image_token_id=IMAGE,
)


def tile_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """One tile of 16 tokens, with the mask that says that it is no padding."""
    return visual(
        16,
        pixel_values=pixels(noise, 1, 3, 32, 32),
        pixel_attention_mask=torch.ones(1, dtype=torch.bool),
    )


hyperclovax = make(
    "HyperCLOVAXVisionV2ForConditionalGeneration",
    "HyperCLOVAXVisionV2Config",
    vision_config={
        **TOWER,
        "model_type": "qwen2_5_vl_vision",
        "hidden_size": 32,
        "out_hidden_size": 64,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    },
    text_config=text("hyperclovax"),
    image_token_id=IMAGE,
    video_token_id=VIDEO,
)

molmo2 = make(
    "Molmo2ForConditionalGeneration",
    "Molmo2Config",
    vision_config={
        **PATCHES,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "image_size": [32, 32],
        "patch_size": 8,
    },
    adapter_config={
        "vision_feature_layer": [1, 0],
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 64,
        "text_hidden_size": 64,
    },
    text_config=text(
        None,
        head_dim=16,
        additional_vocab_size=0,
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
        rope_scaling_layers=[0, 2],
    ),
    image_patch_id=IMAGE,
)


def pooled_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """Crops of 4 x 4 patches, an overview and a detail; every two patches are one token (Molmo 2)."""
    crops = size + 1
    patches = torch.arange(16 * crops).reshape(-1, 2)
    return visual(
        8 * crops,
        pixel_values=pixels(noise, crops, 16, 192),
        image_token_pooling=patches,
        image_grids=torch.tensor([[2, 4, 2 * (crops - 1), 4]]),
        image_num_crops=torch.tensor([crops]),
    )


def join_pooled(samples: list[list[Visual]]) -> dict[str, Tensor]:
    """The patches that are pooled are counted through all crops of the batch."""
    joined = join_cat(samples)
    flat = [v.tensors for sample in samples for v in sample]
    if flat:
        starts = [0, *torch.tensor([16 * len(one["pixel_values"]) for one in flat]).cumsum(0).tolist()]
        pooling = [one["image_token_pooling"] + start for one, start in zip(flat, starts, strict=False)]
        joined["image_token_pooling"] = torch.cat(pooling)
    return joined


apertus = make(
    "Apertus1p5ForConditionalGeneration",
    "Apertus1p5Config",
    vision_config={
        "codebook_size": 20,
        "embed_dim": 8,
        "latent_channels": 8,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "resolution": 16,
    },
    text_config=text(None, rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
    audio_config={"model_type": "wavtokenizer_encoder", "codebook_size": 10},
    image_token_id=IMAGE,
    audio_token_id=156,
    image_token_offset=160,
    audio_token_offset=180,
)
APERTUS_SIZES = [(16, 16), (8, 16), (16, 24)]


def coded_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """An image as codes of a discrete tokenizer, one for 4 x 4 pixels."""
    height, width = APERTUS_SIZES[size]
    values = torch.zeros(1, 3, 16, 24)
    values[..., :height, :width] = pixels(noise, 1, 3, height, width)
    return visual(height * width // 16, pixel_values=values, image_sizes=torch.tensor([[height, width]]))


MUSE_VISION: dict[str, Any] = {**MOON, "max_position_embeddings": 64}
MUSE_TEXT = text(
    None,
    layers=6,
    head_dim=16,
    sliding_window=WINDOW,
    layer_types=mixed(),
    layer_rope_theta=[1e4, 1e4, 0] * 2,
    qk_scale_factor=1.5,
)
"""Layers without rotary positions among others. With the released factor on the normalised queries, 3.9 or 5.5, the
softmax of these random weights is so sharp that rounding alone exceeds the tolerance."""
MUSE: dict[str, Any] = {
    "vision_config": MUSE_VISION,
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "out_hidden_size": 128,
    "projector_hidden_size": 64,
}

muse_glimmer = make(
    "MuseGlimmerForConditionalGeneration",
    "MuseGlimmerConfig",
    text_config=MUSE_TEXT,
    **MUSE,
)
muse_spark = make(
    "MuseSparkForConditionalGeneration",
    "MuseSparkConfig",
    text_config={
        **MUSE_TEXT,
        "moe_intermediate_size": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "moe_hidden_size": 32,
    },
    audio_config={
        "patch_sizes": [4, 4],
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
        "num_hidden_layers": 2,
        "out_hidden_size": 64,
    },
    audio_token_id=156,
    **MUSE,
)


NEW: Any = {"since": (5, 24)}
CASES = [
    TinyCase("granite_docling", granite_docling, tile_visual, join=join_padded, **NEW),
    TinyCase("hyperclovax_vision_v2", hyperclovax, grid_visual, ALL, (IMAGE, VIDEO), **NEW),
    TinyCase("molmo2", molmo2, pooled_visual, join=join_pooled, finish=token_types("mm_token_type_ids"), **NEW),
    TinyCase("apertus1p5", apertus, coded_visual, switched="text_config", **NEW),
    TinyCase("muse_glimmer", muse_glimmer, grid_visual, ALL, (IMAGE, VIDEO), beams=FLAT_BEAMS),
    TinyCase("muse_spark", muse_spark, grid_visual, ALL, (IMAGE, VIDEO), **NEW),
]
