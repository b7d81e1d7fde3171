"""Tiny checkpoints with processors, random and small, for vLLM and transformers alike.

vLLM's CPU attention needs heads of 32 and more. Weights are large enough that other pictures give other answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

IMAGE, VIDEO, START, END = 150, 151, 152, 153
WORDS = 200
#: Tokens that answers are made of: no special ones.
PLAIN = list(range(3, 150))


def tokenizer(image: str = "<|image_pad|>", shown: str | None = None, extra: Mapping[str, str] | None = None) -> Any:
    """One token per word: ``w3`` to ``w199``, and the special ones; ``extra`` are names that a processor looks for."""
    names = ["<pad>", "<s>", "</s>", *(f"w{number}" for number in range(3, WORDS))]
    special = {IMAGE: image, VIDEO: "<|video_pad|>", START: "<|vision_start|>", END: "<|vision_end|>"}
    # what processors write between the frames of a video: the times of Qwen3-VL, the numbers of InternVL
    times = [f"<{frame / 2 + 0.25:.1f}" for frame in range(8)]
    frames = ["seconds>", *times, *(f"Frame{number}:" for number in range(1, 13))]
    names[160 : 160 + len(frames)] = frames
    lines = {WORDS - 5 + count: "\n" * count for count in range(1, 5)}  # Gemma 3 writes some around a picture
    for number, name in {**special, **lines}.items():
        names[number] = name
    words = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = tf.PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="w3",
        extra_special_tokens=dict(extra or {}),
    )
    made.add_special_tokens({"additional_special_tokens": [*special.values(), *lines.values()]})
    shown = shown or image
    made.chat_template = (
        "{% for message in messages %}w10 {% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }} {% else %}"
        f"{shown} {{% endif %}}{{% endfor %}}{{% endif %}} {{% endfor %}}w11"
    )
    return made


def text_config(**more: Any) -> dict[str, Any]:
    """A small language model."""
    width = 128
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 4,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 64,
        "vocab_size": WORDS,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        **more,
    }


QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}
QWEN_SHOWN = "<|vision_start|> <|image_pad|> <|vision_end|>"
MROPE = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4}
PATCHES = {"patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
SIDE = 112
#: Sizes of pictures of one to four tiles.
PINPOINTS = [[SIDE, SIDE], [2 * SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, 2 * SIDE]]
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 14,
    "projection_dim": 64,
}


def qwen_images(**more: Any) -> Any:
    """Pictures as Qwen takes them."""
    return tf.Qwen2VLImageProcessor(patch_size=14, min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 1024, **more)


def qwen_videos(kind: Any) -> Any:
    """Videos as Qwen takes them, up to 64 tokens."""
    return kind(patch_size=14, size={"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 2 * 64})


def qwen2_vl() -> tuple[Any, Any]:
    """Qwen2-VL."""
    vision: dict[str, Any] = {
        **PATCHES,
        "depth": 3,
        "embed_dim": 64,
        "num_heads": 2,
        "hidden_size": 128,
        "mlp_ratio": 2,
    }
    config = tf.Qwen2VLConfig(text_config=text_config(rope_parameters=MROPE), vision_config=vision, **QWEN_IDS)
    videos = qwen_videos(tf.Qwen2VLVideoProcessor)
    processor = tf.Qwen2VLProcessor(qwen_images(), tokenizer(shown=QWEN_SHOWN), videos)
    return tf.Qwen2VLForConditionalGeneration(config), processor


def qwen25_vl() -> tuple[Any, Any]:
    """Qwen2.5-VL, with windows in all layers but one."""
    vision: dict[str, Any] = {**PATCHES, "depth": 3, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2}
    vision |= {"out_hidden_size": 128, "window_size": 112, "fullatt_block_indexes": [1]}
    config = tf.Qwen2_5_VLConfig(text_config=text_config(rope_parameters=MROPE), vision_config=vision, **QWEN_IDS)
    videos = qwen_videos(tf.Qwen2VLVideoProcessor)
    processor = tf.Qwen2_5_VLProcessor(qwen_images(), tokenizer(shown=QWEN_SHOWN), videos)
    return tf.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[Any, Any]:
    """Qwen3-VL, with features of two layers added late (DeepStack)."""
    vision: dict[str, Any] = {**PATCHES, "depth": 3, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2}
    vision |= {"out_hidden_size": 128, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    text = text_config(head_dim=32, rope_parameters={**MROPE, "mrope_interleaved": True})
    config = tf.Qwen3VLConfig(text_config=text, vision_config=vision, **QWEN_IDS)
    videos = qwen_videos(tf.Qwen3VLVideoProcessor)
    # as published: vLLM normalises pictures and videos alike
    images = qwen_images(image_mean=videos.image_mean, image_std=videos.image_std)
    processor = tf.Qwen3VLProcessor(images, tokenizer(shown=QWEN_SHOWN), videos)
    return tf.Qwen3VLForConditionalGeneration(config), processor


def clip_images() -> dict[str, Any]:
    """Sizes of a processor for CLIP."""
    return {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}


LLAVA = {"patch_size": 14, "vision_feature_select_strategy": "default", "image_token": "<image>"}
LLAVA |= {"num_additional_image_tokens": 1}


def llava() -> tuple[Any, Any]:
    """LLaVA-1.5: 64 tokens per picture."""
    config = tf.LlavaConfig(
        vision_config=CLIP,
        text_config=text_config(model_type="llama"),
        image_token_id=IMAGE,
        image_seq_length=(SIDE // 14) ** 2,
    )
    processor = tf.LlavaProcessor(tf.CLIPImageProcessor(**clip_images()), tokenizer("<image>"), **LLAVA)
    return tf.LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    """LLaVA-NeXT: an overview, and one to four tiles."""
    config = tf.LlavaNextConfig(
        vision_config=CLIP,
        text_config=text_config(model_type="llama"),
        image_token_id=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )
    images = tf.LlavaNextImageProcessor(image_grid_pinpoints=PINPOINTS, **clip_images())
    return tf.LlavaNextForConditionalGeneration(config), tf.LlavaNextProcessor(images, tokenizer("<image>"), **LLAVA)


#: Gemma 3's window: prompts of its tests are shorter, as kept tokens are counted otherwise behind it.
WINDOW = 512
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 14,
    "vision_use_head": False,
}


def llava_onevision() -> tuple[Any, Any]:
    """LLaVA-OneVision: all layers of its tower are used."""
    config = tf.LlavaOnevisionConfig(
        vision_config=SIGLIP,
        text_config=text_config(model_type="qwen2"),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_9",
    )
    size = {"height": SIDE, "width": SIDE}
    images = tf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=PINPOINTS)
    processor = tf.LlavaOnevisionProcessor(
        images,
        tokenizer("<image>"),
        tf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(SIDE // 14) ** 2,
        vision_feature_select_strategy="full",
        image_token="<image>",
        video_token="<|video_pad|>",
    )
    return tf.LlavaOnevisionForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    """Gemma 3: 16 tokens per picture, pooled of 64 patches; layers with windows and without."""
    text = text_config(
        model_type="gemma3_text",
        head_dim=32,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    config = tf.Gemma3Config(
        text_config=text,
        vision_config=SIGLIP,
        mm_tokens_per_image=16,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
    )
    extra = {"image_token": "<image_soft_token>", "boi_token": "<|vision_start|>", "eoi_token": "<|vision_end|>"}
    words = tokenizer("<image_soft_token>", "<|vision_start|>", extra)
    images = tf.Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE})
    return tf.Gemma3ForConditionalGeneration(config), tf.Gemma3Processor(images, words, image_seq_length=16)


def internvl() -> tuple[Any, Any]:
    """InternVL: 16 tokens per tile, of 64 patches."""
    vision = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": [SIDE, SIDE],
        "patch_size": [14, 14],
        "use_qk_norm": True,
    }
    config = tf.InternVLConfig(
        vision_config=vision, text_config=text_config(model_type="qwen2"), image_token_id=IMAGE, image_seq_length=16
    )
    extra = {"context_image_token": "<IMG_CONTEXT>", "video_token": "<|video_pad|>"}
    extra |= {"start_image_token": "<|vision_start|>", "end_image_token": "<|vision_end|>"}
    words = tokenizer("<IMG_CONTEXT>", extra=extra)
    size = {"height": SIDE, "width": SIDE}
    images = tf.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = tf.InternVLProcessor(images, words, tf.InternVLVideoProcessor(size=size), image_seq_length=16)
    return tf.InternVLForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "gemma3": gemma3,
    "internvl": internvl,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen25_vl,
    "qwen3_vl": qwen3_vl,
}


def save(name: str, folder: Path) -> Path:
    """Write the checkpoint of a family into a folder of its own."""
    torch.manual_seed(0)  # models make some of their weights
    return write(*FAMILIES[name](), folder / name)


def write(model: Any, processor: Any, target: Path) -> Path:
    """Give a model random weights, and write its checkpoint."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.dim() >= 2:
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * weight[0].numel() ** -0.5)
    model.generation_config = tf.GenerationConfig(eos_token_id=2, pad_token_id=0, bos_token_id=1, do_sample=False)
    model.eval().save_pretrained(target)
    processor.save_pretrained(target)
    if "llava" in model.config.model_type or model.config.model_type == "gemma3":
        _rename_tower(target / "model.safetensors")
    return target


def _rename_tower(path: Path) -> None:
    """Name the tower's weights as older checkpoints do, which vLLM reads; transformers reads both."""
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    old, new = "vision_tower.", "vision_tower.vision_model."
    renamed = {name if new in name else name.replace(old, new): weight for name, weight in weights.items()}
    save_file(renamed, path, metadata={"format": "pt"})


def shown(family: str) -> str:
    """What stands for a picture in a family's prompts, before the processor repeats it."""
    if family.startswith("qwen"):
        return QWEN_SHOWN
    return {"gemma3": "<|vision_start|>", "internvl": "<IMG_CONTEXT>"}.get(family, "<image>")


#: Families that get videos in vLLM.
VIDEO_FAMILIES = ("llava_onevision", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def shown_video(family: str) -> str:
    """What stands for a video in a family's prompts, before the processor repeats it."""
    return QWEN_SHOWN.replace("image", "video") if family.startswith("qwen") else "<|video_pad|>"
