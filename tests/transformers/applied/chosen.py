"""Which of transformers' tests run: those of the core families that call a model, on the CPU, without the network."""

from __future__ import annotations

import re

FAMILIES = (
    "llava",
    "llava_next",
    "llava_onevision",
    "llava_next_video",
    "video_llava",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "gemma3",
    "paligemma",
    "internvl",
    "idefics3",
    "smolvlm",
    "mistral3",
)

#: Words of tests that are left out, and why.
LEFT_OUT = {
    "another device, several of them, or a package that is not there": (
        "flash|_fa[234]_|deepspeed|multi_gpu|model_parallel|tensor_parallel|test_tp_|expert_parallel|[fh]sdp|offload"
        "|kernels|quant_cache|peft|memory"
    ),
    "exports, which are refused (tests/engine/test_unwrap.py)": "export|onnx|executorch",
    "checkpoints from the network": "integration_?test|pipeline|is_small|beyond_sliding_window_tiny",
    "language models without images": "Gemma3TextModelTest|TextModelPositionIdsTest",
    "tests that call no model: configs, weights, loading, names of classes": (
        "test_config|ConfigTest|default_config|initiali[sz]|init_|tied|mapping|missing|mismatched_shapes|resize|prefix"
        "|keep_in_fp32|problem_types|weights_reload|can_load|bc_torch|load_contig|meta_device|safetensors|main_input"
        "|parameter_or_buffer|get_set_emb|num_layers_is|attn_implementation_setter|internal_model_config|inherits_gen"
        "|mixin_inherit|from_pretrained_no|keys_to_ignore|head_has|position_vector|save_without_tied|sdpa_can"
    ),
    "parts of a model that do not run behind the first layer": "get_(image|video|text|audio)_features|rope|router",
    "what other tests cover, slowly": (
        "compile|recompile|training_overfit|batched_and_grouped|flex_attention|sliding_window_mask"
        r"|eager_matches_sdpa_inference_\d+_(fp16|bf16)|eager_matches_sdpa_inference.*no_attn_mask"
    ),
    "kinds of layers that the core families do not have": "recurrent|mtp|double_shift",
}
_LEFT_OUT = re.compile("|".join(LEFT_OUT.values()), re.IGNORECASE)

#: Tests that look up rows by their position in the unpruned prompt: they cannot hold where rows are missing.
EVERY_ROW = frozenset(
    {
        "test_eager_padding_matches_padding_free_with_position_ids",  # of ours: tests/engine/test_packed.py
        "test_sdpa_padding_matches_padding_free_with_position_ids",
        "test_bidirectional_image_attention",
    }
)


def chosen(test: str) -> bool:
    """Whether a test runs, by its class and name (``Class::test``)."""
    return _LEFT_OUT.search(test) is None


def test_file(family: str) -> str:
    """The file of a family's tests, in the checkout."""
    return f"tests/models/{family}/test_modeling_{family}.py"
