"""Config dicts of the towers and language models that the tiny families share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import Tensor
from transformers import PreTrainedModel

from tests.support.tiny.core import VOCAB

CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
SIGLIP: dict[str, Any] = {**CLIP, "model_type": "siglip_vision_model", "vision_use_head": False}
SAM: dict[str, Any] = {
    "hidden_size": 32,
    "output_channels": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 128,
    "patch_size": 8,
    "window_size": 4,
    "global_attn_indexes": [1],
    "mlp_dim": 64,
}
MOON: dict[str, Any] = {
    "patch_size": 4,
    "pos_emb_height": 8,
    "pos_emb_width": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
}
"""MoonViT's."""
PATCHES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 4,
}
MROPE: dict[str, Any] = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}


def text(model_type: str | None = "llama", layers: int = 4, **more: Any) -> dict[str, Any]:
    """A language model config: hidden 64, 4 query and 2 key/value heads of 16."""
    base: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if model_type is not None:
        base["model_type"] = model_type
    return {**base, **more}


GRANITE_ATTENTION = {"attention_multiplier": 1 / 16}
"""Granite's factor on the attention logits, 1 / head_dim as in the released checkpoints.

Its default of 1 makes the logits four times as large as ``1 / sqrt(head_dim)`` does. The softmax is then so sharp that
two correct fp32 computations are each 1.2e-5 per unit of the largest logit from the float64 result, where other
families are 1.5e-6 from it: the two may differ by more than :func:`tests.support.oracle.tolerance`.
"""


def mixed(layers: int = 6, every: int = 3) -> list[str]:
    """Layer types: sliding, sliding, full, ..."""
    return ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(layers)]


def pixels(noise: torch.Generator, *shape: int) -> Tensor:
    """Random pixels."""
    return torch.randn(*shape, generator=noise)


def make(model_class: Any, config_class: Any, **config: Any) -> Callable[[], PreTrainedModel]:
    """Builds a model from a fresh config. Classes that older versions lack are given by name."""

    def create() -> PreTrainedModel:
        model, settings = (getattr(tf, c) if isinstance(c, str) else c for c in (model_class, config_class))
        return model(settings(**config))  # type: ignore[no-any-return]

    return create
