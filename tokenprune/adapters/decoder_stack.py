"""A model's stack of decoder layers: their attention, the states that can be read, and where pruning is exact."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from tokenprune.adapters.layer_signature import LayerSignature
from tokenprune.adapters.projections import Projection, Rotate, names_used, projection, rotation
from tokenprune.core.call_arguments import named_parameters
from tokenprune.errors import UnsupportedFeatureError, UnsupportedModelError

#: Names of the attention module inside a decoder layer, in the order tried.
ATTENTION_NAMES = ("self_attn", "attention", "attn", "self_attention")

#: Layer types whose state is one key and one value per token: a dropped token leaves no trace in them.
EXACT_TYPES = frozenset({"full_attention", "sliding_attention", "chunked_attention", "attention"})

#: Why layers of other types are refused, by a word of the type.
INEXACT_TYPES = {
    "reference": "counts its window from the end of the whole prompt",
    "indexed": "chooses by an index over all tokens what it sees",
    "sparse": "chooses by an index over all tokens what it sees",
    "compressed": "sees blocks of tokens, compressed",
    "conv": "mixes neighbouring tokens",
    "linear": "keeps a recurrent state",
    "hybrid": "keeps a recurrent or convolved state beside its attention",
}

#: Names of modules inside a layer that choose or compress what its attention sees.
CHOOSING_MODULES = frozenset({"indexer", "compressor"})

#: Settings of decoders that mix tokens or layers in ways that dropping rows would break, and what they do.
REFUSED_SETTINGS = {
    "num_kv_shared_layers": "shares keys and values between layers",
    "use_cla": "shares keys and values between layers",
    "altup_num_inputs": "keeps several streams of hidden states (AltUp)",
    "hc_mult": "keeps several streams of hidden states (hyper-connections)",
    "hc_count": "keeps several streams of hidden states (hyper-connections)",
}


class DecoderStack:
    """The decoder layers of one model. Keeps no state of a call.

    A family whose layers are built in another way overrides methods here, and names its class in
    :attr:`tokenprune.adapters.base.Adapter.stack_class`.

    Attributes:
        model: The model.
        decoder: The module that holds the layers.
        text_config: The language model's config.
        signature: Names of the layers' arguments.
        layers: The layers; of compiled ones, the modules inside.

    Raises:
        UnsupportedModelError: The layers take something else than hidden states first, have no argument of the mask's
            name, or attend to images across.
        UnsupportedFeatureError: A layer is wrapped in a module that hides its arguments (FSDP1).
    """

    def __init__(self, model: nn.Module, decoder: nn.Module, text_config: Any, signature: LayerSignature) -> None:
        self.model = model
        self.decoder = decoder
        self.text_config = text_config
        self.signature = signature
        modules: Any = decoder.layers
        self.layers: Sequence[Any] = [getattr(layer, "_orig_mod", layer) for layer in modules]  # torch.compile(layer)
        self._check_arguments()

    # ---- how the layers attend -------------------------------------------------------------------------------

    @property
    def attention_implementation(self) -> str:
        """``sdpa``, ``eager``, ``flash_attention_2`` ... as set on the decoder now."""
        return str(getattr(self.decoder.config, "_attn_implementation", None) or "eager")

    def kind(self, layer: int) -> str:
        """``full_attention``, ``sliding_attention``, ``linear_attention`` ... of a layer."""
        types = getattr(self.text_config, "layer_types", None)
        if types is not None:
            return str(types[layer])
        return "sliding_attention" if getattr(self._config(layer), "sliding_window", None) else "full_attention"

    def window(self, layer: int) -> int | None:
        """Tokens that a layer with a sliding or chunked window sees at most; None where it sees everything."""
        names = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
        name = names.get(self.kind(layer))
        size = None if name is None else getattr(self._config(layer), name, None)
        return None if size is None else int(size)

    def num_heads(self, layer: int) -> int:
        """Query heads of a layer.

        Raises:
            UnsupportedModelError: The config does not say.
        """
        heads = self._config(layer).num_attention_heads
        if not isinstance(heads, int):
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: the config gives layer {layer} {heads!r} heads",
                "write an adapter whose stack_class overrides num_heads() and projections()",
            )
        return heads

    def attention(self, layer: int) -> nn.Module | None:
        """The attention module of a layer, or None where it has none."""
        modules = (getattr(self.layers[layer], name, None) for name in ATTENTION_NAMES)
        return next((module for module in modules if isinstance(module, nn.Module)), None)

    # ---- signals ---------------------------------------------------------------------------------------------

    def projections(self, layer: int, names: frozenset[str]) -> dict[str, Projection]:
        """Where the query, key and value states of a layer can be read.

        Args:
            layer: Decoder layer.
            names: Any of ``query``, ``key``, ``value``.

        Raises:
            UnsupportedModelError: The attention module is not built in a known way.
        """
        attention: Any = self._required_attention(layer)
        heads, config = self.num_heads(layer), self._config(layer)
        queries_per_key = getattr(attention, "num_key_value_groups", None)
        if queries_per_key:
            key_heads = heads // int(queries_per_key)
        else:
            key_heads = int(getattr(config, "num_key_value_heads", None) or heads)
        head_dim = int(getattr(attention, "head_dim", None) or config.hidden_size // heads)
        return {name: projection(attention, name, heads, key_heads, head_dim) for name in sorted(names)}

    def entering_norm(self, layer: int) -> Callable[[Tensor], Tensor]:
        """The norm between the states that enter a layer and its attention, ``[batch, rows, dim]`` to the same shape.

        Raises:
            UnsupportedModelError: The layer is not built in a known way.
        """
        self._required_attention(layer)
        return entering_norm(self.layers[layer])

    def final_norm(self) -> Callable[[Tensor], Tensor]:
        """The norm that the decoder applies behind its last layer, ``[..., dim]`` to the same shape.

        Raises:
            UnsupportedModelError: The decoder is not built in a known way.
        """
        return final_norm(self.decoder)

    def rotary(self, layer: int) -> Rotate:
        """The family's own rotary embedding for one tensor.

        Returns:
            ``rotate(states, cos, sin)`` for ``states`` ``[batch, heads, rows, head_dim]``.

        Raises:
            UnsupportedModelError: Single attention rows cannot be computed as the layer computes them.
        """
        return rotation(self._required_attention(layer))

    # ---- refusals --------------------------------------------------------------------------------------------

    def check_exact(self, first: int) -> None:
        """Refuse what cannot be pruned exactly when tokens are dropped before layer ``first``.

        Raises:
            UnsupportedModelError: A layer from ``first`` on keeps anything of a token but its key and value, or layers
                share what they keep of a token.
        """
        for setting, effect in REFUSED_SETTINGS.items():
            if getattr(self.text_config, setting, None):
                raise UnsupportedModelError(f"{type(self.model).__name__} {effect}", "it cannot be pruned exactly")
        for layer in range(first, len(self.layers)):
            why = self._why_inexact(layer)
            if why is not None:
                raise UnsupportedModelError(
                    f"{type(self.model).__name__}: layer {layer} ({self.kind(layer)}) {why}",
                    "it cannot be pruned exactly from there on; prune behind the last such layer, if any layer"
                    " follows it",
                )

    def check_prompt(self, first: int, width: int) -> None:
        """Refuse a prompt of ``width`` tokens that cannot be pruned exactly before layer ``first``.

        Raises:
            UnsupportedFeatureError: A layer without rotary positions scales its queries by their row number (Llama 4),
                and the prompt is long enough for that to differ between rows.
        """
        for layer in range(first, len(self.layers)):
            attention = self.attention(layer)
            scales = getattr(attention, "attn_temperature_tuning", False) and not getattr(attention, "use_rope", True)
            limit = int(getattr(attention, "floor_scale", 1))
            if scales and width >= limit:
                raise UnsupportedFeatureError(
                    f"layer {layer} scales attention by position in a prompt of {width} tokens",
                    f"prune prompts shorter than {limit} tokens",
                )

    def check_attention_rows(self, layer: int) -> None:
        """Refuse early where single attention rows cannot be computed.

        The layer is asked for its cosines and sines and not its attention module, because the engine reads the layer's
        argument, and a family's ``layer_signature`` names the arguments of layers only.

        Raises:
            UnsupportedModelError: See :meth:`rotary`; or the layer's attention computes its rotary embedding itself
                (Moshi).
            UnsupportedFeatureError: The model uses flex attention.
        """
        self.rotary(layer)
        name = self.signature.position_embeddings
        if name not in named_parameters(self.layers[layer].forward):
            raise UnsupportedModelError(
                f"{type(self.layers[layer]).__name__} is given no {name}: single attention rows cannot be computed",
                "use a method that needs no attention rows (scorers matrix_entropy, random, norm)",
            )
        if self.attention_implementation == "flex_attention":
            raise UnsupportedFeatureError("flex_attention is not supported", "use sdpa, eager or flash_attention_2")

    def _why_inexact(self, layer: int) -> str | None:
        kind, names = self.kind(layer), [name.rpartition(".")[2] for name, _ in self.layers[layer].named_modules()]
        if kind not in EXACT_TYPES:
            return next((why for word, why in INEXACT_TYPES.items() if word in kind), "is not plain attention")
        # every recurrent mixer begins with a convolution along the sequence, whatever its layer is called
        recurrent = any(isinstance(module, nn.Conv1d) for module in self.layers[layer].modules())
        if recurrent or self.attention(layer) is None:
            return "is not plain attention"
        return INEXACT_TYPES["indexed"] if CHOOSING_MODULES & set(names) else None

    def _check_arguments(self) -> None:
        """Refuse layers whose arguments cannot be replaced by name."""
        for number, layer in enumerate(self.layers):
            if not named_parameters(layer.forward):
                raise UnsupportedFeatureError(
                    f"layer {number} of the decoder is wrapped in {type(layer).__name__}, which hides its arguments",
                    "apply the method to the unwrapped model; fully_shard (FSDP2) shards a model without wrapping its"
                    " layers",
                )
        names, mask = named_parameters(self.layers[0].forward), self.signature.attention_mask
        why = None
        if names[0] != self.signature.hidden_states:
            why = f"does not start with {self.signature.hidden_states} (it has {names[:3]})"
        elif not any(mask in named_parameters(layer.forward) for layer in self.layers):
            # a layer with **kwargs would accept the mask of a ragged batch under a wrong name, and ignore it
            why = f"has no argument {mask} (it has {names})"
        if why is not None:
            raise UnsupportedModelError(
                f"{type(self.layers[0]).__name__}.forward {why}", "write an adapter that overrides layer_signature"
            )
        if any("cross_attn" in name for name, _ in self.decoder.named_modules()):
            raise UnsupportedModelError(
                f"{type(self.model).__name__} sees images through cross-attention layers",
                "there are no visual tokens to prune in its sequence",
            )

    def _config(self, layer: int) -> Any:
        """The config of one layer, where transformers keeps one per layer (Step 3.7)."""
        heterogeneous = getattr(self.text_config, "is_heterogeneous", False)
        return self.text_config.per_layer_config[layer] if heterogeneous else self.text_config

    def _required_attention(self, layer: int) -> nn.Module:
        attention = self.attention(layer)
        if attention is None:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: layer {layer} ({self.kind(layer)}) has no attention",
                "use a scorer that reads hidden states only, or prune before another layer",
            )
        return attention


def entering_norm(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """The norm that a decoder layer applies before its attention; the identity where the attention comes first.

    It is found by the names that the layer's forward uses, in their order.

    Raises:
        UnsupportedModelError: The layer does something else to its states first.
    """
    names = list(names_used(layer))
    attention = next((name for name in ATTENTION_NAMES if name in names), None)
    before = names[: names.index(attention)] if attention else names
    norms: list[Any] = [getattr(layer, name, None) for name in before]
    # self.attention(self.norm(x)) names the attention first: without a norm before it, all norms have to come after
    later = [name for name in names if "norm" in name and not name.startswith("post_")]
    known = len(norms) == 1 and isinstance(norms[0], nn.Module) if norms else not later
    if attention is None or not known:
        raise UnsupportedModelError(
            f"{type(layer).__name__}.forward does more than normalise its states before the attention"
            f" ({', '.join(before or later)})",
            "use a scorer that reads the layer before (at: previous), or write an adapter whose stack_class overrides"
            " entering_norm()",
        )
    norm: Callable[[Tensor], Tensor] = norms[0] if norms else nn.Identity()
    return norm


def final_norm(decoder: nn.Module) -> Callable[[Tensor], Tensor]:
    """The norm that a decoder applies behind its last layer, found by the name that its forward uses.

    Raises:
        UnsupportedModelError: The forward uses no norm, or more than one.
    """
    named = [name for name in dict.fromkeys(names_used(decoder)) if "norm" in name]
    norms = {name: module for name in named if isinstance(module := getattr(decoder, name, None), nn.Module)}
    if len(norms) != 1:
        raise UnsupportedModelError(
            f"{type(decoder).__name__}.forward has no single norm behind its last layer ({', '.join(norms) or 'none'})",
            "use final_norm: false, or write an adapter whose stack_class overrides final_norm()",
        )
    (norm,) = norms.values()
    return norm
