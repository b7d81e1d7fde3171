"""Families that the project does not name: the generic path has to be right for them or refuse them."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from transformers import PreTrainedModel

from tests.support.tiny.core import (
    END,
    FLAT_BEAMS,
    IMAGE,
    START,
    VIDEO,
    TinyCase,
    Visual,
    join_padded,
    token_types,
    visual,
)
from tests.support.tiny.languages import COHERE2, WINDOW
from tests.support.tiny.llava import PINPOINTS, SIZES, clip_visual
from tests.support.tiny.others import rows_visual
from tests.support.tiny.parts import CLIP, GRANITE_ATTENTION, MROPE, PATCHES, SAM, SIGLIP, make, mixed, pixels, text
from tests.support.tiny.qwen import GRIDS, TOWER, grid_visual


def fixed(n: int, size: int = 32, before: tuple[int, ...] = (), after: tuple[int, ...] = ()) -> Any:
    """A `make_visual` whose images of `size` pixels are always `n` tokens."""

    def make(model: PreTrainedModel, kind: str, index: int, noise: torch.Generator) -> Visual:
        return visual(n, IMAGE, before, after, pixel_values=pixels(noise, 1, 3, size, size))

    return make


vipllava = make(
    tf.VipLlavaForConditionalGeneration,
    tf.VipLlavaConfig,
    vision_config=CLIP,
    text_config=text(),
    image_token_index=IMAGE,
    vision_feature_layers=[-2, -1],
    image_seq_length=16,
)
aya = make(
    tf.AyaVisionForConditionalGeneration,
    tf.AyaVisionConfig,
    vision_config={**SIGLIP, "patch_size": 4},
    text_config=COHERE2,
    image_token_index=IMAGE,
)
cohere2_vision = make(
    tf.Cohere2VisionForConditionalGeneration,
    tf.Cohere2VisionConfig,
    vision_config={**SIGLIP, "patch_size": 4},
    text_config=COHERE2,
    image_token_id=IMAGE,
    alignment_intermediate_size=64,
)
ovis2 = make(
    tf.Ovis2ForConditionalGeneration,
    tf.Ovis2Config,
    vision_config={**PATCHES, "hidden_stride": 2, "vocab_size": 100, "num_visual_indicator_tokens": 5},
    text_config=text("qwen2"),
    image_token_id=IMAGE,
    visual_indicator_token_ids=[160, 161, 162, 163, 164],
    vocab_size=200,
    hidden_size=64,
)
got_ocr2 = make(
    tf.GotOcr2ForConditionalGeneration,
    tf.GotOcr2Config,
    vision_config=SAM,
    text_config=text("qwen2"),
    image_token_index=IMAGE,
)
lighton = make(
    tf.LightOnOcrForConditionalGeneration,
    tf.LightOnOcrConfig,
    vision_config={**PATCHES, "model_type": "pixtral", "image_size": 64, "head_dim": 16},
    text_config=text("qwen3", head_dim=16, sliding_window=None),
    image_token_id=IMAGE,
)
deepseek = make(
    tf.DeepseekVLForConditionalGeneration,
    tf.DeepseekVLConfig,
    vision_config=SIGLIP,
    text_config=text(),
    image_token_id=IMAGE,
)
idefics2 = make(
    tf.Idefics2ForConditionalGeneration,
    tf.Idefics2Config,
    vision_config=PATCHES,
    perceiver_config={
        "hidden_size": 64,
        "resampler_n_latents": 8,
        "resampler_depth": 1,
        "resampler_n_heads": 2,
        "resampler_head_dim": 16,
        "num_key_value_heads": 2,
    },
    text_config=text("mistral", sliding_window=None),
    image_token_id=IMAGE,
)
aria = make(
    tf.AriaForConditionalGeneration,
    tf.AriaConfig,
    vision_config=tf.Idefics3Config(vision_config=PATCHES).vision_config,
    text_config=tf.AriaTextConfig(**text(None, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)),
    projector_patch_to_query_dict={64: 16},
    image_token_index=IMAGE,
)
lfm2 = make(
    tf.Lfm2VlForConditionalGeneration,
    tf.Lfm2VlConfig,
    vision_config={
        **{k: v for k, v in PATCHES.items() if k != "image_size"},
        "num_patches": 64,
        "vision_use_head": False,
    },
    text_config=text("lfm2", layers=6, layer_types=["conv", "conv", "full_attention"] * 2),
    image_token_id=IMAGE,
    projector_hidden_size=64,
)


def llama4(floor_scale: int = 8192) -> PreTrainedModel:
    """Chunked attention, layers without rotary positions; those scale their queries every `floor_scale` tokens."""
    config = tf.Llama4Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 4,
            "vision_output_dim": 64,
            "projector_input_dim": 64,
            "projector_output_dim": 64,
        },
        text_config=text(
            None,
            layers=8,
            head_dim=16,
            intermediate_size_mlp=128,
            num_local_experts=4,
            interleave_moe_layer_step=2,
            attention_chunk_size=16,
            floor_scale=floor_scale,
            attn_scale=0.5,
        ),
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
    )
    return tf.Llama4ForConditionalGeneration(config)


video_llama3 = make(
    tf.VideoLlama3ForConditionalGeneration,
    tf.VideoLlama3Config,
    vision_config={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 4,
    },
    text_config=text("qwen2"),
    image_token_id=IMAGE,
    video_token_id=VIDEO,
)
janus = make(
    tf.JanusForConditionalGeneration,
    tf.JanusConfig,
    vision_config={
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "mlp_ratio": 2.0,
        "projection_dim": 64,
        "num_image_tokens": 16,
    },
    vq_config={
        "embed_dim": 8,
        "num_embeddings": 16,
        "latent_channels": 8,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_patches": 4,
        "projection_dim": 64,
        "image_token_embed_dim": 64,
    },
    text_config=text(),
    image_token_id=IMAGE,
)


def naflex_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """Patches in rows with their spatial shape, padded to 96 (SigLIP 2, as LFM2-VL has it)."""
    _, height, width = GRIDS[size]
    count = height * width
    values = torch.zeros(1, 96, 48)
    values[:, :count] = pixels(noise, 1, count, 48)
    return visual(
        count // 4,
        pixel_values=values,
        spatial_shapes=torch.tensor([[height, width]]),
        pixel_attention_mask=(torch.arange(96) < count).long()[None],
    )


def merged_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """Patches of a grid, merged two by two (VideoLLaMA 3)."""
    grid = torch.tensor([GRIDS[size]])
    count = int(grid.prod())
    values = pixels(noise, count, 48)
    return visual(count // 4, pixel_values=values, image_grid_thw=grid, image_merge_sizes=torch.tensor([2]))


def deepstack_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """Any-resolution images whose features also enter between the language model's layers (Granite 4 Vision)."""
    hw = torch.tensor([SIZES[size]])
    count = 1 + [4, 2, 2][size]
    values = pixels(noise, 1, count, 3, 32, 32)
    features = model.model.get_image_features(values.to(model.dtype), image_sizes=hw, return_dict=True)
    n = features.deepstack_features[0][1][0].shape[0]
    return visual(n, pixel_values=torch.cat([values, torch.zeros(1, 5 - count, 3, 32, 32)], 1), image_sizes=hw)


def minimax_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """Patches of a grid, two by two and two in time a token."""
    grid = torch.tensor([GRIDS[size]])
    count = int(grid.prod())
    return visual(count // 4, pixel_values=pixels(noise, count, 96), image_grid_thw=grid)


granite4 = make(
    tf.Granite4VisionForConditionalGeneration,
    tf.Granite4VisionConfig,
    vision_config={**SIGLIP, "hidden_size": 64, "num_hidden_layers": 4, "patch_size": 4},
    text_config=text(None, layers=6, **GRANITE_ATTENTION),
    image_token_index=IMAGE,
    vision_feature_select_strategy="full",
    image_grid_pinpoints=PINPOINTS,
    downsample_rate="1/2",
    deepstack_layer_map=[[-3, 0], [-2, 1]],
    spatial_vision_layer=-1,
    spatial_target_layers=[2, 3, 4, 5],
    qformer_config={
        "model_type": "blip_2_qformer",
        "hidden_size": 64,
        "encoder_hidden_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 64,
        "cross_attention_frequency": 1,
        "max_position_embeddings": 64,
        "vocab_size": 10,
        "use_qformer_text_input": False,
    },
)
minimax_m3 = make(
    tf.MiniMaxM3SparseForConditionalGeneration,
    tf.MiniMaxM3VLConfig,
    vision_config={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 4,
    },
    text_config=text(
        None,
        head_dim=16,
        rotary_dim=16,
        dense_intermediate_size=128,
        shared_intermediate_size=32,
        num_local_experts=4,
        num_experts_per_tok=2,
        index_n_heads=2,
        index_head_dim=16,
        index_block_size=4,
        index_topk_blocks=3,
        layer_types=["full_attention", "full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
    ),
    image_token_index=IMAGE,
    video_token_index=VIDEO,
    projector_hidden_size=64,
)
exaone = make(
    tf.Exaone4_5_ForConditionalGeneration,
    tf.Exaone4_5_Config,
    vision_config={
        **TOWER,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "window_size": 16,
        "fullatt_block_indexes": [1],
        "num_key_value_heads": 2,
    },
    text_config=text("exaone4", 6, head_dim=16, sliding_window=WINDOW, layer_types=mixed()),
    image_token_id=IMAGE,
    video_token_id=VIDEO,
)
ministral3 = make(
    tf.Mistral3ForConditionalGeneration,
    tf.Mistral3Config,
    vision_config={**PATCHES, "model_type": "pixtral", "image_size": 64, "head_dim": 16},
    text_config=text(
        "ministral3",
        head_dim=16,
        sliding_window=None,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 8,
            "llama_4_scaling_beta": 0.5,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
        },
    ),
    image_token_index=IMAGE,
)
paddle = make(
    tf.PaddleOCRVLForConditionalGeneration,
    tf.PaddleOCRVLConfig,
    vision_config={**PATCHES, "spatial_merge_size": 2},
    text_config=text(None, head_dim=16, rope_parameters=MROPE),
    image_token_id=IMAGE,
    video_token_id=VIDEO,
    vision_start_token_id=START,
    vision_end_token_id=END,
)


def paddle_visual(model: PreTrainedModel, kind: str, size: int, noise: torch.Generator) -> Visual:
    """Patches as little images; four are a token."""
    grid = torch.tensor([GRIDS[size]])
    count = int(grid.prod())
    return visual(count // 4, IMAGE, [START], [END], pixel_values=pixels(noise, count, 3, 4, 4), image_grid_thw=grid)


INDICATED = ((160,), (161,))
CASES = [
    TinyCase("vipllava", vipllava, clip_visual),
    TinyCase("aya_vision", aya, fixed(16)),
    TinyCase("cohere2_vision", cohere2_vision, fixed(16)),
    TinyCase("ovis2", ovis2, fixed(16, 32, *INDICATED)),
    TinyCase("got_ocr2", got_ocr2, fixed(16, 128)),
    TinyCase("lighton_ocr", lighton, rows_visual),
    TinyCase("deepseek_vl", deepseek, fixed(16)),
    TinyCase("idefics2", idefics2, fixed(8), join=join_padded),
    TinyCase("aria", aria, fixed(16)),
    TinyCase("lfm2_vl", lfm2, naflex_visual, hybrid=True),
    TinyCase("llama4_tuned", lambda: llama4(4), fixed(16, 32, (START,), (END,)), beams=False),
    TinyCase("llama4", llama4, fixed(16, 32, (START,), (END,)), beams=False),
    TinyCase("video_llama_3", video_llama3, merged_visual),
    TinyCase("janus", janus, fixed(16)),
    TinyCase("granite4_vision", granite4, deepstack_visual),
    TinyCase("minimax_m3_vl", minimax_m3, minimax_visual),
    TinyCase("exaone4_5", exaone, grid_visual, beams=FLAT_BEAMS),
    TinyCase("ministral3", ministral3, rows_visual),
    TinyCase("paddleocr_vl", paddle, paddle_visual, finish=token_types("mm_token_type_ids")),
]
