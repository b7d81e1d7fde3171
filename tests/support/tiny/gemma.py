"""Gemma's multimodal models: sliding and full layers in one stack, image tokens that see both ways."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from transformers import PreTrainedModel

from tests.support.tiny.core import END, IMAGE, START, VIDEO, TinyCase, Visual, all_prefix, token_types, visual
from tests.support.tiny.parts import SIGLIP, mixed, pixels, text

WINDOW = 10
"""Smaller than every prompt and than an image's run of tokens: sliding matters."""


def gemma_text(model_type: str | None, layers: int = 6, **more: Any) -> dict[str, Any]:
    return text(model_type, layers=layers, head_dim=16, **more)


GEMMA3: dict[str, Any] = {
    "vision_config": SIGLIP,
    "text_config": gemma_text("gemma3_text", sliding_window=WINDOW, layer_types=mixed(), query_pre_attn_scalar=16),
    "mm_tokens_per_image": 16,
    "image_token_index": IMAGE,
    "boi_token_index": START,
    "eoi_token_index": END,
}


def gemma3_model() -> PreTrainedModel:
    return tf.Gemma3ForConditionalGeneration(tf.Gemma3Config(**GEMMA3))


def gemma3_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """16 tokens between the start and end tokens."""
    return visual(16, IMAGE, [START], [END], pixel_values=pixels(noise, 1, 3, 32, 32))


def paligemma_model() -> PreTrainedModel:
    config = tf.PaliGemmaConfig(
        vision_config={**SIGLIP, "projection_dim": 64},
        text_config=gemma_text("gemma", layers=4, num_key_value_heads=1),
        image_token_index=IMAGE,
        hidden_size=64,
        projection_dim=64,
    )
    return tf.PaliGemmaForConditionalGeneration(config)


def paligemma2_model() -> PreTrainedModel:
    """PaliGemma 2: Gemma 2 with sliding layers as the language model."""
    config = tf.PaliGemmaConfig(
        vision_config={**SIGLIP, "projection_dim": 64},
        text_config=gemma_text("gemma2", sliding_window=WINDOW, layer_types=mixed(), query_pre_attn_scalar=16),
        image_token_index=IMAGE,
        hidden_size=64,
        projection_dim=64,
    )
    return tf.PaliGemmaForConditionalGeneration._from_config(config, attn_implementation="eager")


def plain_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """16 tokens, nothing around them."""
    return visual(16, IMAGE, pixel_values=pixels(noise, 1, 3, 32, 32))


GEMMA4_IDS: dict[str, int] = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "boi_token_id": START,
    "eoi_token_id": END,
    "boa_token_id": 156,
    "eoa_token_index": 157,
    "audio_token_id": 158,
}


def gemma4_text(**more: Any) -> dict[str, Any]:
    usual = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 200, "num_kv_shared_layers": 2}
    return gemma_text(None, sliding_window=WINDOW, layer_types=mixed(), **{**usual, **more})


def gemma4_model(**more: Any) -> PreTrainedModel:
    config = tf.Gemma4Config(
        text_config=gemma4_text(**more),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "position_embedding_size": 64,
        },
        audio_config=None,
        **GEMMA4_IDS,
    )
    return tf.Gemma4ForConditionalGeneration(config)


def gemma4_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """8 x 8 patches with their positions, pooled 2 x 2."""
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    positions = torch.stack([columns, rows], -1).reshape(1, 64, 2)
    return visual(
        16, IMAGE, [START], [END], pixel_values=pixels(noise, 1, 64, 48).sigmoid(), image_position_ids=positions
    )


def shieldgemma2_model() -> PreTrainedModel:
    """Gemma 3 under the name of its safety classifier."""
    return tf.Gemma3ForConditionalGeneration(tf.ShieldGemma2Config(**GEMMA3))


def gemma4_unified_model() -> PreTrainedModel:
    """No tower: patches of pixels become tokens by a linear layer."""
    config = tf.Gemma4UnifiedConfig(
        text_config=gemma_text(None, sliding_window=WINDOW, layer_types=mixed()),
        vision_config={
            "patch_size": 4,
            "pooling_kernel_size": 2,
            "mm_embed_dim": 32,
            "mm_posemb_size": 16,
            "output_proj_dims": 32,
        },
        audio_config=None,
        **GEMMA4_IDS,
    )
    return tf.Gemma4UnifiedForConditionalGeneration(config)


def merged_patches(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """4 x 4 patches of 8 x 8 pixels, with their positions."""
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    positions = torch.stack([columns, rows], -1).reshape(1, 16, 2)
    return visual(16, IMAGE, [START], [END], pixel_values=pixels(noise, 1, 16, 192), image_position_ids=positions)


SUFFIX = {"token_type_ids": 1}
CASES = [
    TinyCase("gemma3", gemma3_model, gemma3_visual, finish=token_types("token_type_ids"), core=True),
    TinyCase("paligemma", paligemma_model, plain_visual, finish=all_prefix, first=True, core=True, appended=SUFFIX),
    TinyCase(
        "paligemma2",
        paligemma2_model,
        plain_visual,
        finish=all_prefix,
        first=True,
        attentions=("eager",),
        appended=SUFFIX,
    ),
    TinyCase(
        "gemma4_unshared",
        lambda: gemma4_model(num_kv_shared_layers=0),
        gemma4_visual,
        finish=token_types("mm_token_type_ids"),
        slack=10,
    ),
    TinyCase(
        "gemma4_large",
        lambda: gemma4_model(
            num_kv_shared_layers=0, hidden_size_per_layer_input=0, use_bidirectional_attention="vision"
        ),
        gemma4_visual,
        finish=token_types("mm_token_type_ids"),
        slack=10,
    ),
    TinyCase("shieldgemma2", shieldgemma2_model, gemma3_visual, finish=token_types("token_type_ids")),
    TinyCase("gemma4_unified", gemma4_unified_model, merged_patches, finish=token_types("mm_token_type_ids"), slack=10),
    TinyCase("gemma4", gemma4_model, gemma4_visual, finish=token_types("mm_token_type_ids"), slack=3),
]
