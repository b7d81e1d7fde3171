"""InternVL, SmolVLM, Idefics3, Mistral3: one image, one or more tiles of tokens."""

from __future__ import annotations

import torch
import transformers as tf
from transformers import PreTrainedModel

from tests.support.tiny.core import IMAGE, TinyCase, Visual, join_padded, visual
from tests.support.tiny.parts import PATCHES, pixels, text

MISTRAL_SIZES = [(32, 32), (16, 32), (32, 48)]


def internvl_model() -> PreTrainedModel:
    config = tf.InternVLConfig(
        vision_config={**PATCHES, "image_size": [32, 32], "patch_size": [4, 4]},
        text_config=text("qwen2"),
        image_token_id=IMAGE,
        image_seq_length=16,
        downsample_ratio=0.5,
    )
    return tf.InternVLForConditionalGeneration(config)


def tiled_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """An image of one, two or three tiles of 16 tokens, in one run (InternVL)."""
    tiles = size + 1
    return visual(16 * tiles, IMAGE, [152], [153], pixel_values=pixels(noise, tiles, 3, 32, 32))


def smolvlm_model() -> PreTrainedModel:
    config = tf.SmolVLMConfig(vision_config=PATCHES, text_config=text(), image_token_id=IMAGE, scale_factor=2)
    return tf.SmolVLMForConditionalGeneration(config)


def idefics3_model() -> PreTrainedModel:
    config = tf.Idefics3Config(vision_config=PATCHES, text_config=text(), image_token_id=IMAGE, scale_factor=2)
    return tf.Idefics3ForConditionalGeneration(config)


def fenced_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """16 tokens between two fence tokens."""
    return visual(16, IMAGE, [154], [154], pixel_values=pixels(noise, 1, 3, 32, 32))


def mistral3_model() -> PreTrainedModel:
    config = tf.Mistral3Config(
        vision_config={**PATCHES, "model_type": "pixtral", "image_size": 64, "head_dim": 16},
        text_config=text("mistral", head_dim=16, sliding_window=None),
        image_token_id=IMAGE,
        spatial_merge_size=2,
    )
    return tf.Mistral3ForConditionalGeneration(config)


def rows_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """Rows of tokens with a break token after each but the last, which ends the image (Pixtral, Mistral3).

    Images of one batch are padded to the largest; `image_sizes` says what is real.
    """
    height, width = MISTRAL_SIZES[size]
    values = torch.zeros(1, 3, 32, 48)
    values[..., :height, :width] = pixels(noise, 1, 3, height, width)
    rows, columns = height // 8, width // 8
    parts: list[tuple[int, int]] = []
    for row in range(rows):
        parts += [(IMAGE, columns), (152 if row < rows - 1 else 153, 1)]
    return Visual(
        tuple(parts), (rows * columns,), {"pixel_values": values, "image_sizes": torch.tensor([[height, width]])}
    )


CASES = [
    TinyCase("internvl", internvl_model, tiled_visual, core=True),
    TinyCase("smolvlm", smolvlm_model, fenced_visual, join=join_padded, core=True),
    TinyCase("idefics3", idefics3_model, fenced_visual, join=join_padded, core=True),
    TinyCase("mistral3", mistral3_model, rows_visual, core=True),
]
