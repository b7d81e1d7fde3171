"""Families behind towers of their own make: document readers, codebooks, encoder-free patches."""

from __future__ import annotations

from inspect import signature

import torch
import transformers as tf
from transformers import PreTrainedModel

from tests.support.tiny.candidates import fixed
from tests.support.tiny.core import FLAT_BEAMS, IMAGE, VIDEO, TinyCase, Visual, token_types, visual
from tests.support.tiny.languages import MLA
from tests.support.tiny.others import tiled_visual
from tests.support.tiny.parts import CLIP, MOON, MROPE, PATCHES, SAM, SIGLIP, make, mixed, pixels, text
from tests.support.tiny.qwen import GRIDS, IDS, framewise_visual, qwen3_tower

WINDOW = 10

qianfan = make(
    "QianfanOCRForConditionalGeneration",
    "QianfanOCRConfig",
    vision_config={**PATCHES, "image_size": [32, 32], "patch_size": [4, 4]},
    text_config=text("qwen3", head_dim=16),
    image_token_id=IMAGE,
    image_seq_length=16,
)
chart2table = make(
    "GotOcr2ForConditionalGeneration",
    "PPChart2TableConfig",
    vision_config=SAM,
    text_config=text("qwen2"),
    image_token_index=IMAGE,
)
hybrid_towers = make(
    "DeepseekVLHybridForConditionalGeneration",
    "DeepseekVLHybridConfig",
    vision_config=SIGLIP,
    high_res_vision_config={**SAM, "model_type": "sam_vision_model"},
    text_config=text(),
    image_token_id=IMAGE,
)


def two_resolutions(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """One image for each of two towers (DeepSeek-VL)."""
    return visual(16, pixel_values=pixels(noise, 1, 3, 32, 32), high_res_pixel_values=pixels(noise, 1, 3, 128, 128))


step = make(
    "Step3p7ForConditionalGeneration",
    "Step3p7Config",
    vision_config={**PATCHES, "image_size": 64, "max_position_embeddings": 256},
    text_config=text(
        None,
        layers=6,
        head_dim=16,
        num_sliding_attention_heads=8,
        num_attention_groups=2,
        sliding_window=WINDOW,
        layer_types=mixed(),
        mlp_layer_types=["dense", *["sparse"] * 5],
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        share_expert_dim=32,
    ),
    image_token_id=IMAGE,
)
kimi = make(
    "Kimi_K25ForConditionalGeneration",
    "Kimi_K25Config",
    vision_config=MOON,
    text_config=MLA,
    projection_hidden_size=32,
    image_token_id=IMAGE,
    video_token_id=VIDEO,
)


def little_images(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """Patches as little images; four are a token."""
    grid = torch.tensor([GRIDS[size]])
    count = int(grid.prod())
    return visual(count // 4, pixel_values=pixels(noise, count, 3, 4, 4), image_grid_thw=grid)


fuyu = make(
    "FuyuForCausalLM",
    "FuyuConfig",
    text_config=text("persimmon", num_key_value_heads=4),
    hidden_size=64,
    image_size=32,
    patch_size=8,
    image_token_id=IMAGE,
)


def flat_patches(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """Pixels of patches, which a linear layer makes tokens of."""
    name = "pixel_values" if "pixel_values" in signature(model.forward).parameters else "image_patches"
    return visual(16, **{name: pixels(noise, 1, 16, 192)})


hunyuan = make(
    "HunYuanVLForConditionalGeneration",
    "HunYuanVLConfig",
    vision_config={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "out_hidden_size": 64,
        "patch_size": 4,
        "img_max_token_num": 64,
        "max_image_size": 32,
        "text_hidden_size": 64,
    },
    text_config=text(
        None, head_dim=16, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    ),
    image_token_id=IMAGE,
)


def bordered_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """A token for four patches, a newline token a row, and one at either end (HunYuan-VL)."""
    grid = torch.tensor([GRIDS[size]])
    _, height, width = GRIDS[size]
    return visual(
        height // 2 * (width // 2 + 1) + 2, pixel_values=pixels(noise, height * width, 48), image_grid_thw=grid
    )


chameleon = make(
    "ChameleonForConditionalGeneration",
    "ChameleonConfig",
    vq_config={
        "embed_dim": 8,
        "num_embeddings": 10,
        "latent_channels": 8,
        "resolution": 16,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1],
        "num_res_blocks": 1,
        "attn_type": "vanilla",
    },
    vocabulary_map={"<image>": IMAGE, **{f"IMGIMG{'ABCDEFGHIJ'[i]}Z": 160 + i for i in range(10)}},
    **text(None),
)
emu3 = make(
    "Emu3ForConditionalGeneration",
    "Emu3Config",
    vq_config={
        "codebook_size": 10,
        "embed_dim": 4,
        "latent_channels": 4,
        "base_channels": 32,
        "channel_multiplier": [1, 1, 1],
        "num_res_blocks": 1,
        "hidden_size": 32,
        "num_attention_heads": 1,
        "attn_resolutions": [],
        "temporal_downsample_factor": 1,
    },
    text_config=text(None),
    vocabulary_map={
        "<image>": IMAGE,
        "<|extra_200|>": 159,
        **{f"<|visual token {i:06d}|>": 160 + i for i in range(10)},
    },
)


def sized_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """An image as codes of a discrete tokenizer, with its size (Emu 3)."""
    return visual(20, pixel_values=pixels(noise, 1, 3, 16, 16), image_sizes=torch.tensor([[16, 16]]))


compass = make(
    "CohereCompassForConditionalGeneration",
    "CohereCompassConfig",
    vision_config=qwen3_tower(depth=3, deepstack_visual_indexes=[0, 1]),
    text_config=text(
        None,
        layers=6,
        sliding_window=WINDOW,
        layer_types=mixed(),
        rope_parameters={"full_attention": MROPE, "sliding_attention": MROPE},
    ),
    **IDS,
)
deepseek_ocr2 = make(
    "DeepseekOcr2ForConditionalGeneration",
    "DeepseekOcr2Config",
    vision_config={
        "sam_config": {**SAM, "image_size": 64, "downsample_channels": [16, 32]},
        "encoder_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
    },
    text_config=text(
        None,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
    ),
    image_token_id=IMAGE,
)
perception = make(
    "PerceptionLMForConditionalGeneration",
    "PerceptionLMConfig",
    vision_config=tf.CLIPVisionConfig(**CLIP, model_args={"embed_dim": 32}),  # released models have a tower of timm
    text_config=text(),
    image_token_id=IMAGE,
    video_token_id=VIDEO,
)


def wrapped_tile(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """One tile of 16 tokens (Perception LM)."""
    return visual(16, pixel_values=pixels(noise, 1, 1, 3, 32, 32))


fast_vlm = make(
    "FastVlmForConditionalGeneration",
    "FastVlmConfig",
    vision_config={
        "model_type": "convnext",
        "hidden_sizes": [16, 32],
        "depths": [1, 1],
        "num_stages": 2,
        "hidden_size": 32,
        "image_size": 32,
    },
    text_config=text("qwen2"),
    image_token_index=IMAGE,
    image_seq_length=16,
)

CASES = [
    TinyCase("qianfan_ocr", qianfan, tiled_visual),
    TinyCase("pp_chart2table", chart2table, fixed(16, 128)),
    TinyCase("deepseek_vl_hybrid", hybrid_towers, two_resolutions),
    TinyCase("step3p7", step, fixed(16, 64)),
    TinyCase("kimi_k25", kimi, little_images, beams=FLAT_BEAMS),
    TinyCase("fuyu", fuyu, flat_patches, beams=False),
    TinyCase("hunyuan_vl", hunyuan, bordered_visual, finish=token_types("mm_token_type_ids"), beams=FLAT_BEAMS),
    TinyCase("chameleon", chameleon, fixed(16, 16)),
    TinyCase("emu3", emu3, sized_visual),
    TinyCase("cohere_compass", compass, framewise_visual, finish=token_types("mm_token_type_ids")),
    TinyCase("deepseek_ocr2", deepseek_ocr2, fixed(145, 64)),
    TinyCase("perception_lm", perception, wrapped_tile),
    TinyCase("fast_vlm", fast_vlm, fixed(16), switched="text_config"),
]
