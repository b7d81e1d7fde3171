"""FLOPs and KV-cache bytes in closed form. One multiplication and one addition count as two FLOPs.

Counted: all matrix products and convolutions of vision tower, projector and decoder layers, and both products of
attention. Not counted, as in the papers: norms, rotary embedding, softmax, activations, and the embedding (a look-up;
in Gemma 4 also the projection to its per-layer inputs). The output head and the pruner's selection are listed apart.

Some families have layers that the formulas do not describe, e.g. linear attention. Their FLOPs are unknown, and the
functions raise an error that says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tokenprune.errors import UnsupportedModelError
from tokenprune.flops.vision import TowerShape, vision_flops


@dataclass(frozen=True)
class FlopsByPart:
    """FLOPs of one sample's prefill, by part of the model.

    Attributes:
        vision: The vision tower, patch embedding included.
        projector: The layers that turn the tower's features into visual tokens.
        decoder: All decoder layers.
        selection: Scoring and selecting tokens.
        head: The output head at the last position, as ``generate`` computes it; papers leave it out of totals.
    """

    vision: int
    projector: int
    decoder: int
    selection: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        """FLOPs of the prefill without the output head, as the pruning papers state them."""
        return self.vision + self.projector + self.decoder + self.selection

    def to_dict(self) -> dict[str, int]:
        """The parts by name, without the total."""
        return asdict(self)


# ---- decoder ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """The sizes that the cost of a decoder layer, and of a selection before it, depends on.

    Attributes:
        width: Hidden size of the decoder.
        heads: Number of query heads.
        head_dim: Size of one head.
        kv_heads: Number of key-value heads.
        ffn: Hidden size of all feed-forwards that one text token passes through.
        visual_ffn: That of a visual token; differs from ``ffn`` where each modality has its own experts.
        products: FLOPs per token, hidden unit and unit of width: 6 for a feed-forward with a gate, else 4.
        kv_projections: Key and value projections that the layer computes: 2; 1 where the keys are also the values;
            0 where the layer reads the keys and values of another layer.
        other_weights: Weights of the further matrices that every token passes through, e.g. an expert router.
        tower: Sizes of the vision tower's states, which selections may read; None where they are unknown.
    """

    width: int
    heads: int
    head_dim: int
    kv_heads: int
    ffn: int
    visual_ffn: int
    products: int
    kv_projections: int = 2
    other_weights: int = 0
    tower: TowerShape | None = None

    @classmethod
    def of(cls, config: Any, layer: int = 0) -> Shape:
        """Read the shape of one decoder layer.

        Args:
            config: A transformers text config.
            layer: The layer, counted from 0. Most families have equal layers.

        Raises:
            UnsupportedModelError: The closed form does not describe this family's layers; the message says why.
        """
        own = _layer_config(config, layer)
        _check_layer(own, layer)
        width, heads = _size(own, "hidden_size", layer), _size(own, "num_attention_heads", layer)
        shared_layers = _first(own, ["num_kv_shared_layers"])  # the last ones read the keys of earlier layers
        shares_keys = shared_layers > 0 and layer >= int(own.num_hidden_layers) - shared_layers
        ffn, visual_ffn, router = _feed_forward(own, layer, shares_keys)
        head_dim, kv_heads = _heads(own, layer)
        per_layer_input = int(getattr(own, "hidden_size_per_layer_input", None) or 0)
        return cls(
            width=width,
            heads=heads,
            head_dim=head_dim,
            kv_heads=kv_heads,
            ffn=ffn,
            visual_ffn=visual_ffn,
            products=6 if is_gated(own) else 4,
            kv_projections=0 if shares_keys else 1 if _keys_are_values(own, layer) else 2,
            other_weights=router + 2 * per_layer_input * width,
        )

    @classmethod
    def of_stage(cls, config: Any, layer: int) -> Shape:
        """Read the shape of one decoder layer and of the vision tower, as selections before that layer need it.

        Args:
            config: A model's config.
            layer: The layer, counted from 0.

        Raises:
            UnsupportedModelError: The closed form does not describe this family's decoder layers.
        """
        return replace(cls.of(config.get_text_config(decoder=True), layer), tower=TowerShape.of(config))

    def known_tower(self) -> TowerShape:
        """The sizes of the vision tower's states.

        Raises:
            UnsupportedModelError: They are unknown.
        """
        if self.tower is None:
            raise UnsupportedModelError(
                "the width and the heads of the vision tower are unknown, and the selection reads its states",
                "count the operations with tokenprune.measure.counted",
            )
        return self.tower

    def flops(self, tokens: int, cached: int = 0, visual: int = 0) -> int:
        """FLOPs of one pass over ``tokens`` tokens, ``visual`` of them visual; see :func:`layer_flops`."""
        query, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        projections = 2 * tokens * self.width * (2 * query + self.kv_projections * key_value)
        attention = 4 * tokens * (tokens + cached) * query
        hidden = (tokens - visual) * self.ffn + visual * self.visual_ffn
        return projections + attention + self.products * self.width * hidden + 2 * tokens * self.other_weights


#: Layer types whose cost is that of attention over all tokens. A sliding window counts in full, as a causal mask does.
_ATTENTION = frozenset({"full_attention", "sliding_attention", "chunked_attention"})

#: Config field -> what the closed form does not describe.
_UNDESCRIBED = {
    "kv_lora_rank": "it attends to compressed keys and values",
    "layers_block_type": "it mixes attention with other layers",
    "mamba_d_state": "it mixes attention with state-space layers",
    "laurel_rank": "its layers have low-rank branches",
    "intermediate_size_mlp": "transformers runs every expert on every token",
}


def _unknown(config: Any, why: str, fix: str = "count the operations with tokenprune.measure.counted") -> Exception:
    family = getattr(config, "model_type", type(config).__name__)
    return UnsupportedModelError(f"FLOPs of {family!r} are unknown: {why}", fix)


def _layer_config(config: Any, layer: int) -> Any:
    """The config of one layer, where transformers keeps one per layer."""
    return config.per_layer_config[layer] if getattr(config, "is_heterogeneous", False) else config


def _check_layer(config: Any, layer: int) -> None:
    types = getattr(config, "layer_types", None)
    if types and types[layer] not in _ATTENTION:
        raise _unknown(config, f"it has layers of type {types[layer]!r}")
    for name, why in _UNDESCRIBED.items():
        if getattr(config, name, None) is not None:
            raise _unknown(config, why)


def _size(config: Any, name: str, layer: int, default: int | None = None) -> int:
    """A size that may be stated once or per layer.

    Raises:
        UnsupportedModelError: It is neither a number nor one number per layer.
    """
    value = getattr(config, name, None)
    value = default if value is None else value
    if isinstance(value, list | tuple) and len(value) == config.num_hidden_layers:
        value = value[layer]
    if not isinstance(value, int):
        raise _unknown(config, f"{name} is {value!r}")
    return value


def _heads(config: Any, layer: int) -> tuple[int, int]:
    """Size of one head, and number of key-value heads."""
    width, heads = _size(config, "hidden_size", layer), _size(config, "num_attention_heads", layer)
    head_dim = _size(config, "head_dim", layer, width // heads)
    kv_heads = _size(config, "num_key_value_heads", layer, heads)
    types = getattr(config, "layer_types", None)
    if types and types[layer] == "full_attention":  # Gemma 4 in transformers without per-layer configs
        head_dim = _first(config, ["global_head_dim"]) or head_dim
        if _keys_are_values(config, layer):
            kv_heads = _first(config, ["num_global_key_value_heads"]) or kv_heads
    return head_dim, kv_heads


def _keys_are_values(config: Any, layer: int) -> bool:
    """Whether the key projection is also the value projection (Gemma 4's global layers)."""
    return bool(getattr(config, "attention_k_eq_v", False)) and config.layer_types[layer] == "full_attention"


def _first(config: Any, names: Sequence[str]) -> int:
    """The first of the fields that is set, else 0."""
    return next((int(value) for name in names if (value := getattr(config, name, None))), 0)


def _is_sparse(config: Any, layer: int) -> bool:
    """Whether a layer of a mixture of experts has experts: some families keep dense layers."""
    types = getattr(config, "mlp_layer_types", None)
    if types:
        return bool(types[layer] == "sparse")
    if layer < _first(config, ["first_k_dense_replace"]) or layer in (getattr(config, "mlp_only_layers", None) or ()):
        return False
    return (layer + 1) % (_first(config, ["decoder_sparse_step"]) or 1) == 0


def _feed_forward(config: Any, layer: int, shares_keys: bool) -> tuple[int, int, int]:
    """Hidden sizes of the feed-forwards that a text and a visual token pass through, and the router's weights.

    Of a mixture of experts the active and the shared experts count. ``moe_intermediate_size`` may be a pair: the
    experts of text and those of visual tokens (ERNIE 4.5 VL).
    """
    dense = _size(config, "intermediate_size", layer)
    if shares_keys and getattr(config, "use_double_wide_mlp", False):
        dense *= 2
    beside = getattr(config, "enable_moe_block", None)  # Gemma 4: experts beside the dense feed-forward, or none
    active = _first(config, ["num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"])
    if not active or beside is False or not _is_sparse(config, layer):
        return dense, dense, 0
    width = getattr(config, "moe_intermediate_size", None) or dense
    text, visual = width if isinstance(width, list | tuple) and len(width) == 2 else (width, width)
    if not (isinstance(text, int) and isinstance(visual, int)):
        raise _unknown(config, f"moe_intermediate_size is {width!r}")
    always = _first(config, ["moe_num_shared_experts", "n_shared_experts"]) * text + (dense if beside else 0)
    gated = _first(config, ["shared_expert_intermediate_size"])
    experts = _first(config, ["num_local_experts", "num_experts", "moe_num_experts", "n_routed_experts"])
    router = (experts + bool(gated)) * int(config.hidden_size)
    return active * text + always + gated, active * visual + always + gated, router


def layer_flops(config: Any, tokens: int, cached: int = 0, layer: int = 0, visual: int = 0) -> int:
    """One decoder layer's pass over ``tokens`` tokens: projections, both attention products, feed-forward.

    With width d, FFN m, query width q = H * d_h, key-value width k, n tokens and c keys: ``4 n d q + 4 n d k +
    4 n c q + 6 n d m``; in a prefill c = n, which gives the papers' ``8 n d^2 + 4 n^2 d + 6 n d m`` without
    grouped-query attention. Without a gate in the feed-forward the 6 becomes a 4. Attention counts in full, although
    kernels may skip the pairs that a causal mask hides.

    Args:
        config: A transformers text config.
        tokens: Tokens that the layer sees.
        cached: Keys that the cache holds before the pass: 0 in a prefill; a decode step has one token.
        layer: The layer, counted from 0.
        visual: Visual tokens among ``tokens``; they matter where each modality has its own experts.

    Raises:
        UnsupportedModelError: The closed form does not describe this family's layers.
    """
    return Shape.of(config, layer).flops(tokens, cached, visual)


def is_gated(config: Any) -> bool:
    """Whether the feed-forward has a gate. Only older families have none."""
    return str(getattr(config, "model_type", "")) not in {"gpt_neox", "phi", "opt", "gpt2", "starcoder2", "bloom"}


def prefill_flops(
    config: Any,
    tokens_per_layer: Sequence[int],
    visual_per_layer: Sequence[int] | None = None,
    cached_per_layer: Sequence[int] = (),
) -> int:
    """The decoder's prefill of one sample, without embedding and output head.

    Args:
        config: A transformers text config.
        tokens_per_layer: Tokens that each layer sees.
        visual_per_layer: Visual tokens among them; needed where each modality has its own experts.
        cached_per_layer: Keys of earlier turns that each layer's cache holds; none where empty.

    Raises:
        UnsupportedModelError: The closed form does not describe this family's layers, or depends on the visual tokens
            and these are not given.
    """
    shapes = shapes_of(config, len(tokens_per_layer))
    if visual_per_layer is None:
        if any(shape.ffn != shape.visual_ffn for shape in shapes):
            raise _unknown(config, "text and visual tokens have experts of different size", "say how many are visual")
        visual_per_layer = [0] * len(shapes)
    return flops_of_shapes(shapes, tokens_per_layer, visual_per_layer, cached_per_layer)


def shapes_of(config: Any, layers: int) -> tuple[Shape, ...]:
    """The shapes of the first decoder layers; worth keeping, as a config takes 0.1 ms per layer to read.

    Args:
        config: A transformers text config.
        layers: Number of layers.

    Raises:
        UnsupportedModelError: The closed form does not describe this family's layers.
    """
    return tuple(Shape.of(config, layer) for layer in range(layers))


def flops_of_shapes(
    shapes: Sequence[Shape],
    tokens_per_layer: Sequence[int],
    visual_per_layer: Sequence[int],
    cached_per_layer: Sequence[int] = (),
) -> int:
    """:func:`prefill_flops` of layers whose shapes were read before.

    Args:
        shapes: The shape of each layer.
        tokens_per_layer: Tokens that each layer sees.
        visual_per_layer: Visual tokens among them.
        cached_per_layer: Keys of earlier turns that each layer's cache holds; none where empty.
    """
    cached = cached_per_layer or [0] * len(shapes)
    layers = zip(shapes, tokens_per_layer, cached, visual_per_layer, strict=True)
    return sum(shape.flops(tokens, held, visual) for shape, tokens, held, visual in layers)


def step_flops(config: Any, cached_per_layer: Sequence[int]) -> int:
    """One decode step of one sample, without the output head.

    Args:
        config: A transformers text config.
        cached_per_layer: Keys that each layer's cache holds before the step.

    Raises:
        UnsupportedModelError: The closed form does not describe this family's layers.
    """
    return sum(layer_flops(config, 1, cached, layer) for layer, cached in enumerate(cached_per_layer))


def head_flops(config: Any) -> int:
    """The output head at one position."""
    return 2 * int(config.hidden_size) * int(config.vocab_size)


def kv_cache_bytes(config: Any, tokens_per_layer: Sequence[int], bytes_per_value: int) -> int:
    """Bytes of one sample's keys and values after the prefill.

    Args:
        config: A transformers text config.
        tokens_per_layer: Tokens that each layer sees.
        bytes_per_value: 2 for bfloat16 and float16, 4 for float32.

    Raises:
        UnsupportedModelError: The closed form does not describe this family's layers.
    """
    return cache_bytes_of_shapes(shapes_of(config, len(tokens_per_layer)), tokens_per_layer, bytes_per_value)


def cache_bytes_of_shapes(shapes: Sequence[Shape], tokens_per_layer: Sequence[int], bytes_per_value: int) -> int:
    """:func:`kv_cache_bytes` of layers whose shapes were read before.

    Args:
        shapes: The shape of each layer.
        tokens_per_layer: Tokens that each layer sees.
        bytes_per_value: 2 for bfloat16 and float16, 4 for float32.
    """
    values = sum(
        2 * shape.kv_heads * shape.head_dim * tokens
        for shape, tokens in zip(shapes, tokens_per_layer, strict=True)
        if shape.kv_projections  # other layers read another layer's cache
    )
    return values * bytes_per_value


# ---- the model -------------------------------------------------------------------------------------------------


def model_flops(
    config: Any,
    visual_tokens: int,
    tokens_per_layer: Sequence[int],
    selection: int = 0,
    visual_per_layer: Sequence[int] | None = None,
) -> FlopsByPart:
    """The prefill of one sample.

    Args:
        config: A model's config.
        visual_tokens: Visual tokens of the sample before pruning.
        tokens_per_layer: Tokens, text and visual, that each decoder layer sees.
        selection: FLOPs of the pruner, see :meth:`tokenprune.pruners.base.Pruner.flops`.
        visual_per_layer: Visual tokens that each decoder layer sees, see :func:`prefill_flops`.

    Raises:
        UnsupportedModelError: No closed form for this family's tower or decoder.
        ConfigError: The family's images do not make that many visual tokens.
    """
    text = config.get_text_config(decoder=True)
    vision, projector = vision_flops(config, visual_tokens)
    decoder = prefill_flops(text, tokens_per_layer, visual_per_layer)
    return FlopsByPart(vision, projector, decoder, selection, head_flops(text))


def prefill_cost(
    config: Any, text_tokens: int, cached_per_layer: Sequence[int] = ()
) -> Callable[[Sequence[int], int | None], int]:
    """The cost function of budgets: FLOPs of a prefill, given the visual tokens that each layer sees.

    Args:
        config: A model's config.
        text_tokens: Text tokens of the sample.
        cached_per_layer: Keys of earlier turns that each layer's cache holds; none where empty.

    Returns:
        ``cost(visual tokens per layer, visual tokens that the tower makes)``; with None in place of the latter, tower
        and projector do not count. These tokens are not those of layer 0, before which some may be dropped. It raises
        :class:`~tokenprune.errors.UnsupportedModelError` for a family without a closed form.
    """
    text = config.get_text_config(decoder=True)

    def cost(visual: Sequence[int], made: int | None) -> int:
        decoder = prefill_flops(text, [count + text_tokens for count in visual], visual, cached_per_layer)
        return decoder + (0 if made is None else sum(vision_flops(config, made)))

    return cost
