"""BLIP-2 and its kin: a Q-Former makes eight tokens of an image; their `generate` is the language model's."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from tests.support.tiny.core import IMAGE, VIDEO, TinyCase, Visual, visual
from tests.support.tiny.parts import CLIP, make, pixels, text

TOWER: dict[str, Any] = {name: value for name, value in CLIP.items() if name != "model_type"}
QFORMER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "encoder_hidden_size": 32,
    "vocab_size": 200,
}
OPT: dict[str, Any] = {
    **{name: value for name, value in text("opt").items() if name != "num_key_value_heads"},
    "ffn_dim": 128,
    "word_embed_proj_dim": 64,
}


def parts(language: dict[str, Any], **ids: int) -> dict[str, Any]:
    """The three configs, and the tokens an image becomes."""
    return {"vision_config": TOWER, "qformer_config": QFORMER, "text_config": language, "num_query_tokens": 8, **ids}


blip2 = make("Blip2ForConditionalGeneration", "Blip2Config", **parts(OPT, image_token_index=IMAGE))
blip2_llama = make("Blip2ForConditionalGeneration", "Blip2Config", **parts(text(), image_token_index=IMAGE))
instructblip = make(
    "InstructBlipForConditionalGeneration", "InstructBlipConfig", **parts(text(), image_token_index=IMAGE)
)
instructblip_video = make(
    "InstructBlipVideoForConditionalGeneration",
    "InstructBlipVideoConfig",
    **parts(text(), video_token_index=VIDEO),
)


def queried(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """An image is eight tokens (BLIP-2)."""
    return visual(8, pixel_values=pixels(noise, 1, 3, 32, 32))


def instructed(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """The Q-Former reads the question, too (InstructBLIP)."""
    ids = torch.randint(3, 100, (1, 6), generator=noise)
    return visual(
        8,
        pixel_values=pixels(noise, 1, 3, 32, 32),
        qformer_input_ids=ids,
        qformer_attention_mask=torch.ones_like(ids),
    )


def instructed_frames(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """Two frames, eight tokens each."""
    image = instructed(model, kind, size, noise)
    return visual(16, VIDEO, **{**image.tensors, "pixel_values": pixels(noise, 1, 2, 3, 32, 32)})


CASES = [
    TinyCase(name, create, make_visual, ("image",), visual_ids, generates=False)
    for name, create, make_visual, visual_ids in (
        ("blip_2", blip2, queried, (IMAGE,)),
        ("blip_2_llama", blip2_llama, queried, (IMAGE,)),
        ("instructblip", instructblip, instructed, (IMAGE,)),
        ("instructblipvideo", instructblip_video, instructed_frames, (VIDEO,)),
    )
]
