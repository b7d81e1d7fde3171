"""Finds the decoder, its layers and the visual token ids of a usual transformers model, and refuses unusual ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.adapters.layer_signature import LayerSignature
from tokenprune.core.call_arguments import named_parameters
from tokenprune.errors import UnsupportedFeatureError, UnsupportedModelError

#: Config attributes that hold the id of a token which stands for visual features.
VISUAL_ID_NAMES = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")

#: Names under which a model keeps its decoder, in the order tried.
INNER_NAMES = ("model", "language_model", "decoder")

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


def check_config(model: nn.Module) -> Any:
    """The config of a decoder-only transformers model.

    Raises:
        UnsupportedModelError: The model has no transformers config, or an encoder reads the prompt for the decoder.
    """
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise UnsupportedModelError(f"{type(model).__name__} is not a transformers model", "pass a PreTrainedModel")
    base = getattr(model, "base_model", None)
    both = all(isinstance(getattr(base, name, None), nn.Module) for name in ("encoder", "decoder"))  # DiffusionGemma
    if both or getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} is an encoder-decoder model", "only decoder-only models can be pruned"
        )
    return config


def find_decoder(model: Any) -> nn.Module:
    """The module whose ``layers`` are the decoder layers.

    Raises:
        UnsupportedModelError: Neither ``get_decoder()`` nor ``language_model`` leads to one.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    for candidate in (decoder, getattr(model, "language_model", None)):
        while candidate is not None:
            if isinstance(candidate, nn.Module) and isinstance(getattr(candidate, "layers", None), nn.ModuleList):
                return candidate
            inner = next(filter(None, (getattr(candidate, name, None) for name in INNER_NAMES)), None)
            candidate = inner if inner is not candidate else None
    raise UnsupportedModelError(
        f"{type(model).__name__}: model.get_decoder() and model.language_model lead to no module with a list of layers",
        "write an adapter that overrides find_decoder()",
    )


def generates(model: nn.Module) -> bool:
    """Whether a model has ``generate``: it is made to continue a prompt, and reads the last rows of its logits."""
    return callable(getattr(model, "generate", None))


def check_head(model: nn.Module, decoder: nn.Module) -> None:
    """Refuse models that neither generate nor are a base model: classifiers, rewards, retrieval.

    Their heads pick rows of the hidden states by positions of the prompt, and a pruned model has fewer rows.

    Args:
        model: The model, without its wrappers.
        decoder: The module that holds its decoder layers.

    Raises:
        UnsupportedModelError: The model puts a head of its own on a model of images and text.
    """
    inner = None if generates(model) else _model_inside(model, decoder)
    if inner is not None:
        raise head_error(model, type(inner).__name__)


def head_error(model: nn.Module, inner: str) -> UnsupportedModelError:
    """What is raised for a model that puts a head of its own on ``inner``."""
    return UnsupportedModelError(
        f"{type(model).__name__} puts a head on {inner}, which picks rows by their position in the unpruned prompt",
        f"apply the method to {inner}, call that, and put the head on the rows that you want"
        " (run.stages[-1].rows holds their positions)",
    )


def _model_inside(model: Any, decoder: nn.Module) -> nn.Module | None:
    """The model of images and text that a model is built around; None for a base model, which is one itself."""
    base = getattr(model, "base_model", model)
    if base is not model:
        found: nn.Module = base
        return found
    # a head whose class does not say where its base model is (base_model_prefix)
    inside = (part for part in model.modules() if part is not model and hasattr(part, "get_image_features"))
    return next((part for part in inside if any(module is decoder for module in part.modules())), None)


def find_layers(model: nn.Module, decoder: nn.Module, signature: LayerSignature) -> Sequence[nn.Module]:
    """The decoder layers; of compiled ones, the modules inside.

    Args:
        model: The model, for messages.
        decoder: The module that holds the layers.
        signature: What the layers call their arguments.

    Raises:
        UnsupportedModelError: The layers take something else than hidden states first, have no argument of the mask's
            name, or attend to images across.
        UnsupportedFeatureError: A layer is wrapped in a module that hides its arguments.
    """
    modules: Any = decoder.layers
    layers: list[Any] = [getattr(layer, "_orig_mod", layer) for layer in modules]  # torch.compile(layer) wraps it
    for number, layer in enumerate(layers):
        if not named_parameters(layer.forward):
            raise UnsupportedFeatureError(
                f"layer {number} of the decoder is wrapped in {type(layer).__name__}, which hides its arguments",
                "apply the method to the unwrapped model; fully_shard (FSDP2) shards a model without wrapping its"
                " layers",
            )
    names = named_parameters(layers[0].forward)
    if names[0] != signature.hidden_states:
        raise UnsupportedModelError(
            f"{type(layers[0]).__name__}.forward does not start with {signature.hidden_states} (it has {names[:3]})",
            "write an adapter that overrides layer_signature",
        )
    if not any(signature.attention_mask in named_parameters(layer.forward) for layer in layers):
        # a layer with **kwargs would accept the mask of a ragged batch under a wrong name, and ignore it
        raise UnsupportedModelError(
            f"{type(layers[0]).__name__}.forward has no argument {signature.attention_mask} (it has {names})",
            "write an adapter that overrides layer_signature",
        )
    if any("cross_attn" in name for name, _ in decoder.named_modules()):
        raise UnsupportedModelError(
            f"{type(model).__name__} sees images through cross-attention layers",
            "there are no visual tokens to prune in its sequence",
        )
    return layers


def find_visual_ids(config: Any, text_config: Any) -> tuple[int, ...]:
    """Ids of the tokens that stand for visual features, sorted; empty where the config names none.

    Args:
        config: The model's config; its nested configs are searched when it names none itself.
        text_config: The language model's config.
    """
    nested = [value for value in vars(config).values() if hasattr(value, "to_dict")]
    for configs in ((config, text_config), nested):
        ids = {getattr(one, name, None) for one in configs for name in VISUAL_ID_NAMES}
        visual_ids = tuple(sorted(i for i in ids if isinstance(i, int) and i >= 0))
        if visual_ids:
            return visual_ids
    return ()


def find_picture_ids(model: nn.Module, config: Any) -> Tensor:
    """Ids of the tokens that are pieces of pictures themselves, long ``[tokens]``; most models have none.

    Emu3, Chameleon and Apertus 1.5 turn a picture into tokens of their vocabulary, which take the placeholders' places.
    """
    mapping = getattr(getattr(model, "base_model", model), "vocabulary_mapping", None)
    offset = getattr(config, "image_token_offset", None)
    if mapping is not None:
        return torch.tensor(mapping.image_tokens, dtype=torch.long)
    if offset is not None:
        return torch.arange(offset, offset + config.vision_config.codebook_size)
    return torch.empty(0, dtype=torch.long)


def find_attention(layer: nn.Module) -> nn.Module | None:
    """The attention module of a decoder layer, or None where it has none."""
    modules = (getattr(layer, name, None) for name in ATTENTION_NAMES)
    return next((module for module in modules if isinstance(module, nn.Module)), None)


def entering_norm(layer: Any) -> Callable[[Tensor], Tensor]:
    """The norm that a decoder layer applies before its attention; none where the attention comes first.

    It is found by the names that the layer's forward uses, in their order.

    Raises:
        UnsupportedModelError: The layer does something else to its states first.
    """
    forward: Any = inspect.unwrap(type(layer).forward)
    names = list(forward.__code__.co_names)
    attention = next((name for name in ATTENTION_NAMES if name in names), None)
    before = names[: names.index(attention)] if attention else names
    norms = [getattr(layer, name, None) for name in before]
    # self.attention(self.norm(x)) names the attention first: without a norm before it, all norms have to come after
    later = [name for name in names if "norm" in name and not name.startswith("post_")]
    known = len(norms) == 1 and isinstance(norms[0], nn.Module) if norms else not later
    if attention is None or not known:
        raise UnsupportedModelError(
            f"{type(layer).__name__}.forward does more than normalise its states before the attention"
            f" ({', '.join(before or later)})",
            "use a scorer that reads the layer before (at: previous), or write an adapter that overrides"
            " entering_norm()",
        )
    found: Any = norms[0] if norms else _unchanged
    norm: Callable[[Tensor], Tensor] = found
    return norm


def final_norm(decoder: nn.Module) -> Callable[[Tensor], Tensor]:
    """The norm that a decoder applies behind its last layer, found by the name that its forward uses.

    Raises:
        UnsupportedModelError: The forward uses no norm, or more than one.
    """
    forward: Any = inspect.unwrap(type(decoder).forward)
    modules = {
        name: getattr(decoder, name, None) for name in dict.fromkeys(forward.__code__.co_names) if "norm" in name
    }
    norms = {name: module for name, module in modules.items() if isinstance(module, nn.Module)}
    if len(norms) != 1:
        raise UnsupportedModelError(
            f"{type(decoder).__name__}.forward has no single norm behind its last layer ({', '.join(norms) or 'none'})",
            "use final_norm: false, or write an adapter that overrides final_norm()",
        )
    (found,) = norms.values()
    norm: Callable[[Tensor], Tensor] = found
    return norm


def _unchanged(states: Tensor) -> Tensor:
    return states


def layer_config(text_config: Any, layer: int) -> Any:
    """The config of one layer, where transformers keeps one per layer (Step 3.7)."""
    return text_config.per_layer_config[layer] if getattr(text_config, "is_heterogeneous", False) else text_config


def layer_type(text_config: Any, layer: int) -> str:
    """``full_attention``, ``sliding_attention``, ``linear_attention`` ... of a layer, from the config."""
    types = getattr(text_config, "layer_types", None)
    if types is not None:
        return str(types[layer])
    own = layer_config(text_config, layer)
    return "sliding_attention" if getattr(own, "sliding_window", None) else "full_attention"


def window(text_config: Any, layer: int) -> int | None:
    """Tokens that a layer with a sliding or chunked window sees at most; None where it sees everything."""
    kind = layer_type(text_config, layer)
    name = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}.get(kind)
    size = None if name is None else getattr(layer_config(text_config, layer), name, None)
    return None if size is None else int(size)


def check_settings(model: nn.Module, text_config: Any) -> None:
    """Refuse decoders that share states between layers or keep several streams of hidden states.

    Raises:
        UnsupportedModelError: One of :data:`REFUSED_SETTINGS` is on.
    """
    for setting, effect in REFUSED_SETTINGS.items():
        if getattr(text_config, setting, None):
            raise UnsupportedModelError(f"{type(model).__name__} {effect}", "it cannot be pruned exactly")


def check_layer(model: nn.Module, number: int, kind: str, layer: nn.Module, attention: nn.Module | None) -> None:
    """Refuse a layer that keeps anything of a token but its key and value.

    Args:
        model: The model, for the message.
        number: Number of the layer, for the message.
        kind: Type of the layer; see :func:`layer_type`.
        layer: The layer.
        attention: Its attention module, or None.

    Raises:
        UnsupportedModelError: The layer is recurrent, or it has no plain attention.
    """
    # every recurrent mixer begins with a convolution along the sequence, whatever its layer is called
    recurrent = any(isinstance(module, nn.Conv1d) for module in layer.modules())
    chooses = any(name.rpartition(".")[2] in CHOOSING_MODULES for name, _ in layer.named_modules())
    if kind not in EXACT_TYPES:
        why = next((why for word, why in INEXACT_TYPES.items() if word in kind), "is not plain attention")
    elif recurrent or attention is None:
        why = "is not plain attention"
    elif chooses:
        why = INEXACT_TYPES["indexed"]
    else:
        return
    raise UnsupportedModelError(
        f"{type(model).__name__}: layer {number} ({kind}) {why}",
        "it cannot be pruned exactly from there on; prune behind the last such layer, if any layer follows it",
    )


def check_temperature(number: int, attention: nn.Module | None, width: int) -> None:
    """Refuse prompts in which a layer without rotary positions scales its queries by their row number (Llama 4).

    Args:
        number: Number of the layer, for the message.
        attention: Its attention module, or None.
        width: Tokens of the prompt.

    Raises:
        UnsupportedFeatureError: The prompt is long enough for the scale to differ between rows.
    """
    tuned = getattr(attention, "attn_temperature_tuning", False) and not getattr(attention, "use_rope", True)
    limit = int(getattr(attention, "floor_scale", 1))
    if tuned and width >= limit:
        raise UnsupportedFeatureError(
            f"layer {number} scales attention by position in a prompt of {width} tokens",
            f"prune prompts shorter than {limit} tokens",
        )


def check_position_embeddings(layer: nn.Module, name: str) -> None:
    """Refuse single attention rows of a layer that is not given its cosines and sines.

    The layer is asked and not its attention module, because the engine reads the layer's argument, and an adapter's
    ``layer_signature`` names the arguments of layers only.

    Args:
        layer: A decoder layer.
        name: Name of the argument that holds them.

    Raises:
        UnsupportedModelError: The layer's attention computes its rotary embedding itself (Moshi).
    """
    if name in named_parameters(layer.forward):
        return
    raise UnsupportedModelError(
        f"{type(layer).__name__} is given no {name}: single attention rows cannot be computed",
        "use a method that needs no attention rows (scorers matrix_entropy, random, norm)",
    )
