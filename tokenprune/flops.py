"""FLOPs and KV-cache bytes in closed form. A multiply and an add count as two.

Counted: every matrix product and convolution of vision tower, projector and decoder, and both products of attention.
Left out, as in the papers: norms, rotary embedding, softmax, activations, and the embedding (a look-up). The output
head and the pruner's own selection are lines of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tokenprune.errors import ConfigError, UnsupportedModelError


@dataclass(frozen=True)
class Parts:
    """FLOPs of one sample, part by part.

    Attributes:
        vision: The vision tower, patch embedding included.
        projector: From the tower's features to visual tokens.
        decoder: All decoder layers.
        selection: Scoring and selecting.
        head: The output head at the last position, as ``generate`` computes it; papers leave it out of totals.
    """

    vision: int
    projector: int
    decoder: int
    selection: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        """The prefill without the output head: what the pruning papers state."""
        return self.vision + self.projector + self.decoder + self.selection

    def to_dict(self) -> dict[str, int]:
        """By name, without the total."""
        return asdict(self)


# ---- decoder ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """What of a decoder layer its cost depends on.

    Attributes:
        width: Hidden size.
        heads: Query heads.
        head_dim: Size of one.
        kv_heads: Key-value heads.
        ffn: Hidden size of all feed-forwards that one token passes through.
        products: Matrix products per feed-forward, two FLOPs each: 6 with a gate, else 4.
    """

    width: int
    heads: int
    head_dim: int
    kv_heads: int
    ffn: int
    products: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """Of a transformers text config; of a mixture of experts the active ones count."""
        width, heads = int(config.hidden_size), int(config.num_attention_heads)
        ffn = int(config.intermediate_size)
        active = getattr(config, "num_experts_per_tok", None)
        if active:
            ffn = int(active) * int(getattr(config, "moe_intermediate_size", None) or ffn)
        return cls(
            width=width,
            heads=heads,
            head_dim=int(getattr(config, "head_dim", None) or width // heads),
            kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            ffn=ffn,
            products=6 if is_gated(config) else 4,
        )


def layer_flops(config: Any, tokens: int, cached: int = 0) -> int:
    """One decoder layer's pass over ``tokens`` tokens: projections, both attention products, feed-forward.

    With width d, FFN m, query width q = H * d_h, key-value width k, n tokens and c keys: ``4 n d q + 4 n d k +
    4 n c q + 6 n d m``; in a prefill c = n, which gives the papers' ``8 n d^2 + 4 n^2 d + 6 n d m`` without
    grouped-query attention. A feed-forward without a gate has 4 instead of 6. Attention counts in full: kernels that
    skip what a causal mask hides do less.

    Args:
        config: A transformers text config.
        tokens: Tokens that the layer sees.
        cached: Keys that were there before: 0 in a prefill; a decode step has one token.
    """
    shape = Shape.of(config)
    query, key_value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    projections = 4 * tokens * shape.width * (query + key_value)
    attention = 4 * tokens * (tokens + cached) * query
    return projections + attention + shape.products * tokens * shape.width * shape.ffn


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


def step_flops(config: Any, cached_per_layer: Sequence[int]) -> int:
    """One decode step of one sample, without the output head.

    Args:
        config: A transformers text config.
        cached_per_layer: Keys that each layer's cache holds before the step.
    """
    return sum(layer_flops(config, 1, cached) for cached in cached_per_layer)


def head_flops(config: Any) -> int:
    """The output head at one position."""
    return 2 * int(config.hidden_size) * int(config.vocab_size)


def kv_cache_bytes(config: Any, tokens_per_layer: Sequence[int], bytes_per_value: int) -> int:
    """Bytes of the keys and values of one sample after the prefill.

    Args:
        config: A transformers text config.
        tokens_per_layer: Tokens that each layer sees.
        bytes_per_value: 2 for bfloat16 and float16, 4 for float32.
    """
    shape = Shape.of(config)
    return sum(2 * shape.kv_heads * shape.head_dim * bytes_per_value * tokens for tokens in tokens_per_layer)


# ---- vision towers and projectors ------------------------------------------------------------------------------


def vision_flops(config: Any, visual_tokens: int) -> tuple[int, int]:
    """Vision tower and projector of one sample.

    Args:
        config: A model's config.
        visual_tokens: Visual tokens of the sample, all images.

    Returns:
        (tower, projector).

    Raises:
        UnsupportedModelError: No closed form for this family's tower.
        ConfigError: The family's images do not make that many visual tokens.
    """
    if visual_tokens == 0:
        return 0, 0
    if config.model_type not in _VISION:
        raise UnsupportedModelError(
            f"no closed form for the vision tower of {config.model_type!r} (there is one for {', '.join(_VISION)})",
            "count the decoder alone, or use tokenprune.measure.counted",
        )
    return _VISION[config.model_type](config, visual_tokens)


def _vit(config: Any) -> int:
    """One square image through CLIP or SigLIP: all layers run, whichever the features are read from."""
    side = int(config.image_size) // int(config.patch_size)
    patches, width = side * side, int(config.hidden_size)
    tokens = patches + (1 if config.model_type == "clip_vision_model" else 0)  # the class token
    embedding = 2 * patches * int(config.num_channels) * int(config.patch_size) ** 2 * width
    layer = 8 * tokens * width**2 + 4 * tokens**2 * width + 4 * tokens * width * int(config.intermediate_size)
    return embedding + int(config.num_hidden_layers) * layer


def _llava(config: Any, visual_tokens: int) -> tuple[int, int]:
    """Whole images of the tower's size, each patch a visual token."""
    vision, width = config.vision_config, int(config.text_config.hidden_size)
    patches = (int(vision.image_size) // int(vision.patch_size)) ** 2
    tiles, rest = divmod(visual_tokens, patches)
    if config.model_type == "llava" and rest:
        raise ConfigError(f"{visual_tokens} visual tokens: every image makes {patches}", f"use a multiple of {patches}")
    tiles = max(1, round(visual_tokens / patches))  # LLaVA-NeXT adds row ends, and cuts off padding
    layers = config.vision_feature_layer
    features = int(vision.hidden_size) * (len(layers) if isinstance(layers, list | tuple) else 1)
    return tiles * _vit(vision), 2 * tiles * patches * width * (features + width)


def _qwen_vl(config: Any, visual_tokens: int) -> tuple[int, int]:
    """Native resolution: attention within windows in most blocks; 2 x 2 patches become a visual token."""
    vision = config.vision_config
    width, merge, depth = int(vision.hidden_size), int(vision.spatial_merge_size), int(vision.depth)
    rows = max(side for side in range(1, math.isqrt(visual_tokens) + 1) if visual_tokens % side == 0)
    columns = visual_tokens // rows  # the most square image of that many tokens
    patches = visual_tokens * merge**2
    window = int(vision.window_size) // int(vision.patch_size) // merge
    pairs = merge**4 * _squares(rows, window) * _squares(columns, window)
    full = len(vision.fullatt_block_indexes)
    attention = 4 * width * (full * patches**2 + (depth - full) * pairs)
    linear = depth * (8 * patches * width**2 + 6 * patches * width * int(vision.intermediate_size))
    pixels = int(vision.in_channels) * int(vision.temporal_patch_size) * int(vision.patch_size) ** 2
    merged = width * merge**2
    projector = 2 * visual_tokens * merged * (merged + int(vision.out_hidden_size))
    return attention + linear + 2 * patches * pixels * width, projector


def _squares(length: int, window: int) -> int:
    """Sum of the squared sizes of the windows that a side is cut into."""
    whole, rest = divmod(length, window)
    return whole * window**2 + rest**2


_VISION: Mapping[str, Callable[[Any, int], tuple[int, int]]] = {
    "llava": _llava,
    "llava_next": _llava,
    "vipllava": _llava,
    "qwen2_5_vl": _qwen_vl,
}


# ---- the whole model -------------------------------------------------------------------------------------------


def model_flops(config: Any, visual_tokens: int, tokens_per_layer: Sequence[int], selection: int = 0) -> Parts:
    """The prefill of one sample.

    Args:
        config: A model's config.
        visual_tokens: Visual tokens of the sample before pruning.
        tokens_per_layer: Tokens, text and visual, that each decoder layer sees.
        selection: FLOPs of the pruner, see :meth:`tokenprune.pruners.base.Pruner.flops`.

    Raises:
        UnsupportedModelError: No closed form for this family's tower.
        ConfigError: The family's images do not make that many visual tokens.
    """
    text = config.get_text_config(decoder=True)
    vision, projector = vision_flops(config, visual_tokens)
    return Parts(vision, projector, prefill_flops(text, tokens_per_layer), selection, head_flops(text))


def prefill_cost(config: Any, text_tokens: int) -> Callable[[Sequence[int], bool], int]:
    """What budgets need: FLOPs of a prefill by the visual tokens that each layer sees.

    Args:
        config: A model's config.
        text_tokens: Text tokens of the sample.

    Returns:
        ``cost(visual tokens per layer, whether tower and projector count)``.
    """
    text = config.get_text_config(decoder=True)

    def cost(visual: Sequence[int], vision: bool) -> int:
        decoder = prefill_flops(text, [count + text_tokens for count in visual])
        return decoder + (sum(vision_flops(config, visual[0])) if vision else 0)

    return cost
