"""Tiny models for tests of candidates."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.support.tiny.core import IMAGE
from tests.support.tiny.parts import CLIP, text


def llava(tower: int = 6, layers: int = 8) -> Any:
    """A tiny LLaVA with a tower and a decoder of any depth: 16 visual tokens per picture."""
    config = tf.LlavaConfig(
        vision_config={**CLIP, "num_hidden_layers": tower},
        text_config=text(layers=layers),
        image_token_id=IMAGE,
        image_seq_length=16,
    )
    return tf.LlavaForConditionalGeneration(config)
