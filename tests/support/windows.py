"""Gemma 3 with windows of any size: those of the tiny model are shorter than its prompts."""

from __future__ import annotations

from typing import Any

from tests.support.oracle import decoder_layers
from tests.support.tiny import CASES


def wide_gemma(window: int) -> Any:
    """Gemma 3 whose sliding layers have another window."""
    model: Any = CASES["gemma3"].build("sdpa")
    model.config.text_config.sliding_window = window
    for layer in decoder_layers(model):
        if layer.self_attn.sliding_window is not None:
            layer.self_attn.sliding_window = window
    return model
