"""The contract of an adapter, with everything that a usual transformers model lets us find by itself."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from tokenprune.adapters.layer_signature import LayerSignature
from tokenprune.adapters.signals import Projection as Projection
from tokenprune.adapters.signals import projection, rotation
from tokenprune.errors import UnsupportedFeatureError, UnsupportedModelError
from tokenprune.ops.vision import TowerLayer

#: Config attributes that hold the id of a token which stands for visual features.
VISUAL_ID_NAMES = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")

#: Names of the attention module inside a decoder layer, in the order tried.
ATTENTION_NAMES = ("self_attn", "attention", "attn", "self_attention")

#: Layer types whose state is a list of keys and values, one per token: what is dropped leaves no trace in them.
EXACT_TYPES = frozenset({"full_attention", "sliding_attention", "chunked_attention", "attention"})

#: Settings of decoders that mix tokens or layers in ways that dropping rows would break, and what they do.
REFUSED_SETTINGS = {
    "num_kv_shared_layers": "shares keys and values between layers",
    "use_cla": "shares keys and values between layers",
    "altup_num_inputs": "keeps several streams of hidden states (AltUp)",
    "hc_mult": "keeps several streams of hidden states (hyper-connections)",
}


@dataclass(frozen=True)
class VisualLayout:
    """Where the visual tokens of a call are.

    Attributes:
        mask: Bool ``[batch, seq]``.
        groups: Index of the image or video within its sample, long ``[batch, seq]``; -1 for text.
    """

    mask: Tensor
    groups: Tensor


@dataclass(frozen=True)
class TowerRun:
    """One run of the vision tower, as far as it was watched.

    Attributes:
        arguments: What the tower was given, pixels left out, and what :attr:`Adapter.encoders` asks for.
        states: (layer, ``query`` or ``key``) -> what that module made; (layer, ``rotary``) -> the cosines and sines
            that the attention was given, or None.
    """

    arguments: Mapping[str, Any]
    states: dict[tuple[int, str], Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VisionAttention:
    """An attention module of a vision tower.

    Attributes:
        tower: The tower; it runs once for all images, and once for all videos.
        attention: The attention module.
        query: The module in it that makes the queries.
        key: The one that makes the keys; it may be the same.
        read: Makes the layer's states, feature by feature, from what the two modules made, the cosines and sines of the
            rotary embedding, and the run's arguments (see :class:`TowerRun`).
    """

    tower: nn.Module
    attention: nn.Module
    query: nn.Module
    key: nn.Module
    read: Callable[[Tensor, Tensor, Any, Mapping[str, Any]], TowerLayer]


class Adapter(ABC):
    """What a model family has to tell the engine. Bound to one model; keeps no state of a call.

    Subclasses override what differs: usually only :meth:`group_sizes` and :meth:`grid`.

    Args:
        model: Any transformers model with a decoder and visual inputs.

    Raises:
        UnsupportedModelError: Something the engine needs cannot be found in the model.
    """

    #: Tensors that the layers get and that have the sequence as an axis, beside the usual ones: name -> axis.
    sequence_kwargs: ClassVar[Mapping[str, int]] = {"per_layer_input": 1, "moe_mm_token_type_ids": 1}

    #: What the layers call their arguments; a family with other names overrides it.
    layer_signature: ClassVar[LayerSignature] = LayerSignature()

    #: Methods of the model's inner model that run the tower, and which of their arguments, beside the tower's own,
    #: :attr:`VisionAttention.read` has to know: a decoder is not always told them. Of pixels it gets the shape alone.
    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.name = type(self).__name__.removesuffix("Adapter").lower()
        self.config: Any = getattr(model, "config", None)
        if self.config is None or not hasattr(self.config, "get_text_config"):
            raise UnsupportedModelError(f"{type(model).__name__} is not a transformers model", "pass a PreTrainedModel")
        if getattr(self.config, "is_encoder_decoder", False):
            raise UnsupportedModelError(
                f"{type(model).__name__} is an encoder-decoder model", "only decoder-only models can be pruned"
            )
        self.text_config = self.config.get_text_config(decoder=True)
        self.decoder = self._find_decoder()
        self.layers: Sequence[nn.Module] = self._find_layers()
        self.visual_ids = self._find_visual_ids()

    # ---- structure -------------------------------------------------------------------------------------------

    def _find_decoder(self) -> nn.Module:
        model: Any = self.model
        found = model.get_decoder() if hasattr(model, "get_decoder") else None
        for candidate in (found, getattr(self.model, "language_model", None)):
            while candidate is not None:
                if isinstance(candidate, nn.Module) and isinstance(getattr(candidate, "layers", None), nn.ModuleList):
                    return candidate
                inner = getattr(candidate, "model", None) or getattr(candidate, "language_model", None)
                candidate = inner if inner is not candidate else None
        raise UnsupportedModelError(
            f"{type(self.model).__name__}: found no decoder with a list of layers",
            "the generic adapter looks for model.get_decoder().layers; write an adapter for this family",
        )

    def _find_layers(self) -> Sequence[nn.Module]:
        layers = self.decoder.layers
        assert isinstance(layers, nn.ModuleList)
        names = list(inspect.signature(layers[0].forward).parameters)
        if not names or names[0] != self.layer_signature.hidden_states:
            raise UnsupportedModelError(
                f"{type(layers[0]).__name__}.forward does not start with {self.layer_signature.hidden_states} (it has"
                f" {names[:3]})",
                "write an adapter for this family that overrides layer_signature",
            )
        if any(hasattr(layer, "cross_attn") for layer in layers):
            raise UnsupportedModelError(
                f"{type(self.model).__name__} sees images through cross-attention layers",
                "there are no visual tokens to prune in its sequence",
            )
        return cast(Sequence[nn.Module], layers)

    def _find_visual_ids(self) -> tuple[int, ...]:
        nested = [value for value in vars(self.config).values() if hasattr(value, "to_dict")]
        found: tuple[int, ...] = ()
        for configs in ((self.config, self.text_config), nested):
            ids = {getattr(config, name, None) for config in configs for name in VISUAL_ID_NAMES}
            found = found or tuple(sorted(i for i in ids if isinstance(i, int) and i >= 0))
        if not found:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: its config names no visual token id ({', '.join(VISUAL_ID_NAMES)})",
                "write an adapter that overrides visual_mask()",
            )
        return found

    @property
    def num_layers(self) -> int:
        """Decoder layers that run."""
        return len(self.layers)

    @property
    def num_heads(self) -> int:
        """Query heads of the decoder."""
        heads = self.text_config.num_attention_heads
        if not isinstance(heads, int):
            raise UnsupportedModelError(
                f"{type(self.model).__name__} has another number of heads in every layer", "write an adapter for it"
            )
        return heads

    @property
    def attention_implementation(self) -> str:
        """``sdpa``, ``eager``, ``flash_attention_2`` ... as set on the decoder now."""
        return str(getattr(self.decoder.config, "_attn_implementation", None) or "eager")

    def layer_type(self, layer: int) -> str:
        """``full_attention``, ``sliding_attention``, ``linear_attention`` ... of a layer."""
        types = getattr(self.text_config, "layer_types", None)
        if types is not None:
            return str(types[layer])
        return "sliding_attention" if getattr(self.text_config, "sliding_window", None) else "full_attention"

    def check_layers(self, first: int) -> None:
        """Refuse what cannot be pruned exactly when tokens are dropped before layer ``first``.

        Raises:
            UnsupportedModelError: A layer from ``first`` on is recurrent, or layers share what they keep of a token.
        """
        name = type(self.model).__name__
        for setting, what in REFUSED_SETTINGS.items():
            if getattr(self.text_config, setting, None):
                raise UnsupportedModelError(f"{name} {what}", "it cannot be pruned exactly")
        for layer in range(first, self.num_layers):
            kind = self.layer_type(layer)
            # a convolution along the sequence is how every recurrent mixer begins, whatever its layer is called
            mixes = any(isinstance(module, nn.Conv1d) for module in self.layers[layer].modules())
            if kind not in EXACT_TYPES or mixes or self.attention(layer) is None:
                kind = f"{kind!r}" if kind not in EXACT_TYPES else "not plain attention"
                raise UnsupportedModelError(
                    f"{name}: layer {layer} is {kind}", "hybrid decoders cannot be pruned exactly from there on"
                )

    def check_prompt(self, first: int, width: int) -> None:
        """Refuse a prompt of ``width`` tokens that cannot be pruned exactly before layer ``first``.

        Raises:
            UnsupportedFeatureError: A layer without rotary positions scales its queries by their place among the rows
                that it gets (Llama 4), and the prompt is long enough for that to differ.
        """
        for layer in range(first, self.num_layers):
            attention = self.attention(layer)
            tempered = getattr(attention, "attn_temperature_tuning", False) and not getattr(attention, "use_rope", True)
            if tempered and width >= int(getattr(attention, "floor_scale", 1)):
                raise UnsupportedFeatureError(
                    f"layer {layer} scales attention by position in a prompt of {width} tokens",
                    f"prune prompts shorter than {int(getattr(attention, 'floor_scale', 1))} tokens",
                )

    def attention(self, layer: int) -> nn.Module | None:
        """The attention module of a layer, or None where it has none."""
        for name in ATTENTION_NAMES:
            module = getattr(self.layers[layer], name, None)
            if isinstance(module, nn.Module):
                return module
        return None

    # ---- one call --------------------------------------------------------------------------------------------

    def visual_mask(self, call: Mapping[str, Any]) -> Tensor | None:
        """Which positions of the call hold visual features, bool ``[batch, seq]``; None when there is no text input.

        Args:
            call: The arguments of the model's forward, by name.
        """
        return self.marked(call, self.visual_ids)

    def marked(self, call: Mapping[str, Any], tokens: Sequence[int]) -> Tensor | None:
        """Where the call has any of the given tokens, bool ``[batch, seq]``; None when there is no text input.

        Args:
            call: The arguments of the model's forward, by name.
            tokens: Token ids; in ``inputs_embeds`` they are known by their embedding.
        """
        ids = call.get("input_ids")
        if isinstance(ids, Tensor):
            return torch.isin(ids, torch.tensor(tokens, dtype=ids.dtype, device=ids.device))
        embeds = call.get("inputs_embeds")
        if embeds is None:
            return None
        known = torch.tensor(tokens, dtype=torch.long)
        model: Any = self.model
        table = model.get_input_embeddings()
        known = known[known < table.weight.shape[0]].to(table.weight.device)
        marks = table(known).to(embeds)
        found: Tensor = (embeds[:, :, None] == marks).all(-1).any(-1)
        return found

    @abstractmethod
    def group_sizes(self, call: Mapping[str, Any], mask: Tensor) -> list[list[int]] | None:
        """Visual tokens of each image or video of each sample, in order.

        Args:
            call: The arguments of the model's forward, by name.
            mask: The visual mask, bool ``[batch, seq]``.

        Returns:
            One list per sample whose sum is the sample's visual tokens; None when the family cannot say, and every
            unbroken run of visual tokens is taken as one image.
        """

    def grid(self, call: Mapping[str, Any], layout: VisualLayout) -> Tensor | None:
        """(frame, row, column) of every visual token, long ``[batch, seq, 3]``; -1 for separators and text."""
        return None

    def vision_attention(self, layer: int) -> VisionAttention:
        """Where a layer of the vision tower shows its queries and keys, and how its patches become visual tokens.

        Args:
            layer: Layer of the tower; negative from the end.

        Raises:
            UnsupportedModelError: Tokens are not the tower's patches, or nobody has said how they come from them.
            LayerError: The tower has no such layer.
        """
        raise UnsupportedModelError(
            f"the adapter of {self.name!r} does not say how its vision tower's patches become visual tokens",
            "use a method that does not read the vision tower",
        )

    def video_attention(self, layer: int) -> VisionAttention:
        """The same for videos, where the family has another tower for them."""
        return self.vision_attention(layer)

    def video_mask(self, call: Mapping[str, Any]) -> Tensor | None:
        """Which positions of the call hold features of videos, bool ``[batch, seq]``; None when that is unknown.

        Args:
            call: The arguments of the model's forward, by name.
        """
        return None

    def locate(self, call: Mapping[str, Any]) -> VisualLayout | None:
        """Find the visual tokens of a call and the image or video that each belongs to."""
        mask = self.visual_mask(call)
        if mask is None:
            return None
        sizes = self.group_sizes(call, mask)
        index = mask.cumsum(1) - 1
        if sizes is None:
            starts = mask & ~torch.nn.functional.pad(mask, (1, 0))[:, :-1]
            groups = starts.cumsum(1) - 1
        else:
            counts = mask.sum(1).tolist()
            for sample, (have, want) in enumerate(zip(counts, map(sum, sizes), strict=True)):
                if have != want:
                    raise UnsupportedModelError(
                        f"sample {sample} has {have} visual tokens, but its images make {want}",
                        "check that images and placeholder tokens of the prompt match",
                    )
            width = max(map(len, sizes))
            edges = [[sum(row[: i + 1]) for i in range(len(row))] + [sum(row)] * (width - len(row)) for row in sizes]
            bounds = torch.tensor(edges, device=mask.device).reshape(len(sizes), width)
            groups = (index[:, :, None] >= bounds[:, None, :]).sum(-1)
        return VisualLayout(mask, groups.masked_fill(~mask, -1))

    # ---- signals ---------------------------------------------------------------------------------------------

    def projections(self, layer: int, names: frozenset[str]) -> dict[str, Projection]:
        """Where the query, key and value states of a layer can be read.

        Args:
            layer: Decoder layer.
            names: Any of ``query``, ``key``, ``value``.

        Raises:
            UnsupportedModelError: The attention module is not built the usual way.
        """
        attention: Any = self.attention(layer)
        if attention is None:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: layer {layer} ({self.layer_type(layer)}) has no attention",
                "use a scorer that reads hidden states, or another layer",
            )
        heads = self.num_heads
        groups = getattr(attention, "num_key_value_groups", None)
        shared = heads // int(groups) if groups else getattr(self.text_config, "num_key_value_heads", None) or heads
        head_dim = int(getattr(attention, "head_dim", None) or self.text_config.hidden_size // heads)
        return {name: projection(attention, name, heads, int(shared), head_dim) for name in sorted(names)}

    def rotary(self, layer: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The family's own rotary embedding for one tensor.

        Returns:
            ``rotate(states, cos, sin)`` for ``states`` ``[batch, heads, rows, head_dim]``.

        Raises:
            UnsupportedModelError: Single attention rows cannot be computed as the layer computes them.
        """
        attention = self.attention(layer)
        if attention is None:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: layer {layer} ({self.layer_type(layer)}) has no attention",
                "use a scorer that needs no attention, or another layer",
            )
        return rotation(attention)

    def check_attention_rows(self, layer: int) -> None:
        """Raise early where attention rows cannot be computed; see :meth:`rotary`."""
        self.rotary(layer)
        if self.attention_implementation == "flex_attention":
            raise UnsupportedFeatureError("flex_attention is not supported", "use sdpa, eager or flash_attention_2")


def bound_arguments(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, ``**kwargs`` flattened in."""
    if not args:  # reading a signature takes longer than all else that a decode step costs
        return dict(kwargs)
    names = [
        name
        for name, parameter in inspect.signature(forward).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return {**dict(zip(names, args, strict=False)), **kwargs}
