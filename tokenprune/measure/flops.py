"""FLOPs and KV-cache bytes of a decoder in closed form. A multiply and an add count as two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def layer_flops(config: Any, tokens: int) -> int:
    """One decoder layer's prefill of ``tokens`` tokens: projections, both attention products, feed-forward.

    With width d, FFN m, query width q = H * d_h and key-value width k: ``4 n d q + 4 n d k + 4 n^2 q + 6 n d m``,
    which is ``8 n d^2 + 4 n^2 d + 6 n d m`` without grouped-query attention. Norms, rotary embedding, softmax and
    activations are left out. A feed-forward without a gate has 4 instead of 6.

    Args:
        config: A transformers text config.
        tokens: Tokens that the layer sees.
    """
    width, heads = int(config.hidden_size), int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or width // heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    query, key_value = heads * head_dim, kv_heads * head_dim
    products = 6 if is_gated(config) else 4
    projections = 4 * tokens * width * (query + key_value)
    return projections + 4 * tokens**2 * query + products * tokens * width * int(config.intermediate_size)


def is_gated(config: Any) -> bool:
    """Whether the feed-forward has a gate: all but the older families."""
    return str(getattr(config, "model_type", "")) not in {"gpt_neox", "phi", "opt", "gpt2", "starcoder2", "bloom"}


def prefill_flops(config: Any, tokens_per_layer: Sequence[int]) -> int:
    """The decoder's prefill of one sample, without embedding and output head.

    Args:
        config: A transformers text config.
        tokens_per_layer: Tokens that each layer sees.
    """
    return sum(layer_flops(config, tokens) for tokens in tokens_per_layer)


def kv_cache_bytes(config: Any, tokens_per_layer: Sequence[int], bytes_per_value: int) -> int:
    """Bytes of the keys and values of one sample after the prefill.

    Args:
        config: A transformers text config.
        tokens_per_layer: Tokens that each layer sees.
        bytes_per_value: 2 for bfloat16 and float16, 4 for float32.
    """
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or int(config.hidden_size) // heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    return sum(2 * kv_heads * head_dim * bytes_per_value * tokens for tokens in tokens_per_layer)
