"""LLaVA around language models that differ in attention, masks, positions or projections."""

from __future__ import annotations

import transformers as tf
from transformers import PreTrainedModel

from tests.support.tiny.core import IMAGE, TinyCase
from tests.support.tiny.llava import clip_visual, llava_case
from tests.support.tiny.parts import CLIP, GRANITE_ATTENTION, mixed, text

WINDOW = 10
COHERE2 = text("cohere2", layers=6, sliding_window=WINDOW, layer_types=mixed())
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


CASES = [
    llava_case("llava_mistral_sliding", text("mistral", sliding_window=WINDOW)),
    llava_case(
        "llava_qwen2_sliding", text("qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2)
    ),
    llava_case("llava_qwen3", text("qwen3", head_dim=16)),
    llava_case("llava_phi3", text("phi3", sliding_window=None)),
    llava_case("llava_olmo2", text("olmo2")),
    llava_case("llava_gemma3", text("gemma3_text", 6, head_dim=16, sliding_window=WINDOW, layer_types=mixed())),
    llava_case("llava_cohere2", COHERE2),
    llava_case("llava_granite", text("granite", **GRANITE_ATTENTION)),
    llava_case("llava_smollm3", text("smollm3", no_rope_layer_interval=2)),
    llava_case("llava_glm4", text("glm4", head_dim=16)),
    llava_case("llava_gpt_neox", text("gpt_neox")),
    llava_case("llava_phi", text("phi")),
    llava_case("llava_stablelm", text("stablelm")),
    llava_case("llava_mixtral", text("mixtral", num_local_experts=4, num_experts_per_tok=2)),
    llava_case("llava_deepseek_v3", MLA),
    TinyCase("llava_gpt_oss", gpt_oss, clip_visual, attentions=("eager",)),
]
