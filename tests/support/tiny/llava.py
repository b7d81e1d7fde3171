"""The LLaVA line: LLaVA, NeXT, OneVision, NeXT-Video, Video-LLaVA."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
import transformers as tf
from transformers import PreTrainedModel

from tests.support.tiny.core import IMAGE, VIDEO, MakeVisual, TinyCase, Variant, Visual, visual
from tests.support.tiny.parts import CLIP, SIGLIP, pixels, text

PINPOINTS = [[32, 32], [64, 32], [32, 64], [64, 64]]
SIZES = [[64, 64], [32, 64], [60, 30]]
"""Image sizes of the any-resolution families; each gives another number of tokens."""
MOST_PATCHES = 5


def llava_with(language: dict[str, Any]) -> PreTrainedModel:
    """LLaVA-1.5 around any language model."""
    return tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(vision_config=CLIP, text_config=language, image_token_id=IMAGE, image_seq_length=16)
    )


def clip_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """A 32x32 image is 16 tokens."""
    return visual(16, pixel_values=pixels(noise, 1, 3, 32, 32))


def llava_case(name: str, language: dict[str, Any], core: bool = False) -> TinyCase:
    """LLaVA around `language`."""
    return TinyCase(name, lambda: llava_with(language), clip_visual, core=core)


def anyres(video_tokens: int = 0) -> MakeVisual:
    """An image of one of SIZES cut into patches, or a video of three frames that is `video_tokens` tokens."""

    def make(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
        if kind == "video":
            return visual(video_tokens, VIDEO, pixel_values_videos=pixels(noise, 1, 3, 3, 32, 32))
        hw = torch.tensor([SIZES[size]])
        count = 1 + [4, 2, 2][size]
        values = pixels(noise, 1, count, 3, 32, 32)
        features = model.model.get_image_features(values.to(model.dtype), image_sizes=hw, return_dict=True)
        padded = torch.cat([values, torch.zeros(1, MOST_PATCHES - count, 3, 32, 32)], 1)
        return visual(features.pooler_output[0].shape[0], pixel_values=padded, image_sizes=hw)

    return make


def next_model() -> PreTrainedModel:
    config = tf.LlavaNextConfig(
        vision_config=CLIP, text_config=text(), image_token_id=IMAGE, image_grid_pinpoints=PINPOINTS
    )
    return tf.LlavaNextForConditionalGeneration(config)


def onevision_model() -> PreTrainedModel:
    config = tf.LlavaOnevisionConfig(
        vision_config=SIGLIP,
        text_config=text("qwen2"),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return tf.LlavaOnevisionForConditionalGeneration(config)


def next_video_model() -> PreTrainedModel:
    config = tf.LlavaNextVideoConfig(
        vision_config=CLIP,
        text_config=text(),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )
    return tf.LlavaNextVideoForConditionalGeneration(config)


def video_llava_model() -> PreTrainedModel:
    config = tf.VideoLlavaConfig(vision_config=CLIP, text_config=text(), image_token_id=IMAGE, video_token_id=VIDEO)
    return tf.VideoLlavaForConditionalGeneration(config)


def video_llava_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """An image is 16 tokens, a video of four frames 4 x 17."""
    if kind == "video":
        return visual(4 * 17, VIDEO, pixel_values_videos=pixels(noise, 1, 4, 3, 32, 32))
    name = "pixel_values" if "pixel_values" in signature(model.forward).parameters else "pixel_values_images"
    return Visual(((IMAGE, 16),), (16,), {name: pixels(noise, 1, 3, 32, 32)})


ALL: tuple[Variant, ...] = ("image", "multi", "ragged", "video", "text")
CASES = [
    llava_case("llava", text(), core=True),
    TinyCase("llava_next", next_model, anyres(), core=True),
    TinyCase("llava_onevision", onevision_model, anyres(3 * 4 + 1), ALL, (IMAGE, VIDEO), core=True),
    TinyCase("llava_next_video", next_video_model, anyres(3 * 4), ALL, (IMAGE, VIDEO), core=True),
    TinyCase("video_llava", video_llava_model, video_llava_visual, ALL, (IMAGE, VIDEO), core=True),
]
