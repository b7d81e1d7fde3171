"""Families that the project does not name: the generic path has to be right for them or refuse them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from transformers import PreTrainedModel

from tests.tiny.core import END, IMAGE, START, VIDEO, TinyCase, Visual, join_padded, visual
from tests.tiny.llava import clip_visual, llava_case
from tests.tiny.others import rows_visual
from tests.tiny.parts import CLIP, PATCHES, SIGLIP, mixed, pixels, text
from tests.tiny.qwen import GRIDS

WINDOW = 10


def fixed(n: int, size: int = 32, before: tuple[int, ...] = (), after: tuple[int, ...] = ()) -> Any:
    """A `make_visual` whose images of `size` pixels are always `n` tokens."""

    def make(model: PreTrainedModel, kind: str, index: int, noise: torch.Generator) -> Visual:
        return visual(n, IMAGE, before, after, pixel_values=pixels(noise, 1, 3, size, size))

    return make


def make(model_class: Any, config_class: Any, **config: Any) -> Callable[[], PreTrainedModel]:
    """Builds `model_class` from a fresh config."""
    return lambda: model_class(config_class(**config))


def cohere2(**more: Any) -> dict[str, Any]:
    return text("cohere2", layers=6, sliding_window=WINDOW, layer_types=mixed(), **more)


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
    text_config=cohere2(),
    image_token_index=IMAGE,
)
cohere2_vision = make(
    tf.Cohere2VisionForConditionalGeneration,
    tf.Cohere2VisionConfig,
    vision_config={**SIGLIP, "patch_size": 4},
    text_config=cohere2(),
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
    vision_config={
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 128,
        "patch_size": 8,
        "window_size": 4,
        "global_attn_indexes": [1],
        "mlp_dim": 64,
    },
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
llama4 = make(
    tf.Llama4ForConditionalGeneration,
    tf.Llama4Config,
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
    ),
    image_token_index=IMAGE,
    boi_token_index=START,
    eoi_token_index=END,
)
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


MLA = text(
    "deepseek_v3",
    num_key_value_heads=4,
    kv_lora_rank=16,
    q_lora_rank=16,
    qk_rope_head_dim=8,
    qk_nope_head_dim=8,
    v_head_dim=16,
    n_routed_experts=4,
    n_group=1,
    topk_group=1,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    n_shared_experts=1,
    first_k_dense_replace=1,
)
"""DeepSeek's latent attention: no k_proj or v_proj of their own."""
GPT_OSS = text(
    "gpt_oss", 6, head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=WINDOW, layer_types=mixed()
)


def gpt_oss() -> PreTrainedModel:
    """Attention with sinks; eager only."""
    config = tf.LlavaConfig(vision_config=CLIP, text_config=GPT_OSS, image_token_id=IMAGE, image_seq_length=16)
    return tf.LlavaForConditionalGeneration._from_config(config, attn_implementation="eager")


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
    TinyCase("llama4", llama4, fixed(16, 32, (START,), (END,)), beams=False),
    TinyCase("video_llama_3", video_llama3, merged_visual),
    TinyCase("janus", janus, fixed(16)),
    llava_case("llava_mistral_sliding", text("mistral", sliding_window=WINDOW)),
    llava_case(
        "llava_qwen2_sliding", text("qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2)
    ),
    llava_case("llava_qwen3", text("qwen3", head_dim=16)),
    llava_case("llava_phi3", text("phi3", sliding_window=None)),
    llava_case("llava_olmo2", text("olmo2")),
    llava_case("llava_gemma3", text("gemma3_text", 6, head_dim=16, sliding_window=WINDOW, layer_types=mixed())),
    llava_case("llava_cohere2", cohere2()),
    llava_case("llava_granite", text("granite")),
    llava_case("llava_smollm3", text("smollm3", no_rope_layer_interval=2)),
    llava_case("llava_glm4", text("glm4", head_dim=16)),
    llava_case("llava_gpt_neox", text("gpt_neox")),
    llava_case("llava_phi", text("phi")),
    llava_case("llava_stablelm", text("stablelm")),
    llava_case("llava_mixtral", text("mixtral", num_local_experts=4, num_experts_per_tok=2)),
    llava_case("llava_deepseek_v3", MLA),
    TinyCase("llava_gpt_oss", gpt_oss, clip_visual, attentions=("eager",)),
]
