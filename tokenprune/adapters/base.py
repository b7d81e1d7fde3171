"""The contract of an adapter: what a model family tells the engine, and may override."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenprune.adapters import structure
from tokenprune.adapters.layer_signature import LayerSignature
from tokenprune.adapters.layout import VisualLayout, check_not_empty, find_tokens, layout_from_runs, layout_from_sizes
from tokenprune.adapters.projections import Projection, Rotate, projection, rotation
from tokenprune.adapters.towers import TowerSite
from tokenprune.adapters.views import PlacedItem
from tokenprune.core.architecture import Architecture
from tokenprune.errors import UnsupportedFeatureError, UnsupportedModelError


class Adapter(ABC):
    """What a model family tells the engine. Bound to one model; keeps no state of a call.

    Subclasses override what differs. Families with images and videos extend
    :class:`tokenprune.adapters.image_video.ImageVideoAdapter`, which implements most of this.

    Attributes:
        model: The model.
        name: The family's ``model_type``.
        config: The model's config.
        text_config: The language model's config.
        decoder: The module that holds the decoder layers.
        layers: The decoder layers.
        visual_ids: Ids of the tokens that stand for visual features.

    Args:
        model: Any transformers model with a decoder and visual inputs.

    Raises:
        UnsupportedModelError: Something that the engine needs cannot be found in the model.
        UnsupportedFeatureError: A decoder layer is wrapped in a module that hides its arguments (FSDP1).
    """

    #: What the decoder layers call their arguments.
    layer_signature: ClassVar[LayerSignature] = LayerSignature()

    #: Tensors that layers are given and that have the sequence as an axis, beside the usual ones: name -> axis.
    sequence_kwargs: ClassVar[Mapping[str, int]] = {"per_layer_input": 1, "moe_mm_token_type_ids": 1}

    #: Methods of the model's inner model that run the tower, and which of their arguments :attr:`TowerSite.read` needs
    #: beside the tower's own. Only the shape of a tensor of pixels is kept.
    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.name = type(self).__name__.removesuffix("Adapter").lower()
        self.config = structure.check_config(model)
        self.text_config: Any = self.config.get_text_config(decoder=True)
        self.decoder = self.find_decoder()
        structure.check_head(model, self.decoder)
        self.layers: Sequence[nn.Module] = structure.find_layers(model, self.decoder, self.layer_signature)
        self.visual_ids = self.find_visual_ids()
        self.picture_ids = structure.find_picture_ids(model, self.config)

    # ---- structure -------------------------------------------------------------------------------------------

    def find_decoder(self) -> nn.Module:
        """The module whose ``layers`` are the decoder layers.

        Raises:
            UnsupportedModelError: There is none in the usual places.
        """
        return structure.find_decoder(self.model)

    def find_visual_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that stand for visual features.

        Raises:
            UnsupportedModelError: The config names none.
        """
        visual_ids = structure.find_visual_ids(self.config, self.text_config)
        if not visual_ids:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: its config names no visual token id"
                f" ({', '.join(structure.VISUAL_ID_NAMES)})",
                "write an adapter that overrides find_visual_ids()",
            )
        return visual_ids

    @property
    def num_layers(self) -> int:
        """Decoder layers that run."""
        return len(self.layers)

    @property
    def architecture(self) -> Architecture:
        """What decides whether published settings fit the model."""
        return Architecture.of_configs(self.name, self.num_layers, self.config, self.text_config)

    def num_heads(self, layer: int) -> int:
        """Query heads of a layer.

        Raises:
            UnsupportedModelError: The config does not say.
        """
        heads = structure.layer_config(self.text_config, layer).num_attention_heads
        if not isinstance(heads, int):
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: the config gives layer {layer} {heads!r} heads",
                "write an adapter that overrides num_heads and projections()",
            )
        return heads

    @property
    def attention_implementation(self) -> str:
        """``sdpa``, ``eager``, ``flash_attention_2`` ... as set on the decoder now."""
        return str(getattr(self.decoder.config, "_attn_implementation", None) or "eager")

    def layer_type(self, layer: int) -> str:
        """``full_attention``, ``sliding_attention``, ``linear_attention`` ... of a layer."""
        return structure.layer_type(self.text_config, layer)

    def window(self, layer: int) -> int | None:
        """Tokens that a layer with a sliding or chunked window sees at most; None where it sees everything."""
        return structure.window(self.text_config, layer)

    def attention(self, layer: int) -> nn.Module | None:
        """The attention module of a layer, or None where it has none."""
        return structure.find_attention(self.layers[layer])

    def check_layers(self, first: int) -> None:
        """Refuse what cannot be pruned exactly when tokens are dropped before layer ``first``.

        Raises:
            UnsupportedModelError: A layer from ``first`` on is recurrent, or layers share what they keep of a token.
        """
        structure.check_settings(self.model, self.text_config)
        for layer in range(first, self.num_layers):
            structure.check_layer(self.model, layer, self.layer_type(layer), self.layers[layer], self.attention(layer))

    def check_prompt(self, first: int, width: int) -> None:
        """Refuse a prompt of ``width`` tokens that cannot be pruned exactly before layer ``first``.

        Raises:
            UnsupportedFeatureError: A layer scales its queries by their row number, and the prompt is long enough for
                that to differ.
        """
        for layer in range(first, self.num_layers):
            structure.check_temperature(layer, self.attention(layer), width)

    # ---- visual tokens of a call -----------------------------------------------------------------------------

    def visual_mask(self, call: Mapping[str, Any]) -> Tensor | None:
        """Which positions of the call hold visual features, bool ``[batch, seq]``; None when there is no text input.

        Args:
            call: The arguments of the model's forward, by name.
        """
        return find_tokens(self.model, call, self.visual_ids)

    def video_mask(self, call: Mapping[str, Any]) -> Tensor | None:
        """Which positions of the call hold features of videos, bool ``[batch, seq]``; None when that is unknown.

        Args:
            call: The arguments of the model's forward, by name.
        """
        return None

    @abstractmethod
    def group_sizes(self, call: Mapping[str, Any], mask: Tensor) -> list[list[int]] | None:
        """Visual tokens of each image or video of each sample, in order.

        Args:
            call: The arguments of the model's forward, by name.
            mask: The visual mask, bool ``[batch, seq]``.

        Returns:
            One list per sample whose sum is the sample's visual tokens; None when the family cannot tell, and every
            unbroken run of visual tokens is taken as one image.
        """

    def grid(self, call: Mapping[str, Any], layout: VisualLayout) -> Tensor | None:
        """(frame, row, column) of every visual token, long ``[batch, seq, 3]``; -1 for separators and text.

        None where the family has no token grid.
        """
        return None

    def placed(self, call: Mapping[str, Any], layout: VisualLayout) -> list[list[PlacedItem]] | None:
        """The images and videos of every sample, in the order of the prompt, and where their tokens are on pictures.

        Args:
            call: The arguments of the model's forward, by name, or what :meth:`slim` left of them.
            layout: Where the visual tokens are.

        Returns:
            One list per sample; None where the family has no token grid.
        """
        return None

    def slim(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """What :meth:`placed` needs of a call's arguments, without the memory of pixels, features and caches.

        Args:
            call: The arguments of the model's forward, by name.

        Returns:
            Arguments for which :meth:`placed` tells the same. Nothing of them is copied to the host.
        """
        return {}

    def locate(self, call: Mapping[str, Any]) -> VisualLayout | None:
        """Find the visual tokens of a call, and the image or video that each belongs to.

        Args:
            call: The arguments of the model's forward, by name.

        Raises:
            ConfigError: The batch is empty.
            UnsupportedModelError: A sample's images do not add up to its visual tokens.
        """
        mask = self.visual_mask(call)
        if mask is None:
            return None
        check_not_empty(mask)
        sizes = self.group_sizes(call, mask)
        return layout_from_runs(mask) if sizes is None else layout_from_sizes(mask, sizes)

    # ---- signals ---------------------------------------------------------------------------------------------

    def tower_site(self, layer: int) -> TowerSite:
        """Where a layer of the vision tower is observed, and how its patches become visual tokens.

        Args:
            layer: Layer of the tower; negative from the end.

        Raises:
            UnsupportedModelError: The family does not say how patches become tokens, or its tower is not understood.
            LayerError: The tower has no such layer.
        """
        raise UnsupportedModelError(
            f"the adapter of {self.name!r} does not say how its vision tower's patches become visual tokens",
            "use a method that does not read the vision tower, or write an adapter that overrides tower_site()",
        )

    def video_tower_site(self, layer: int) -> TowerSite:
        """The same for videos, in families that have another tower for them."""
        return self.tower_site(layer)

    def projector(self, layer: int) -> nn.Module | None:
        """The projector, if it gets the states of this layer of the tower and makes one token of every patch alone.

        Args:
            layer: Layer of the tower; negative from the end.

        Returns:
            A module ``[..., width]`` to ``[..., dim]``. None where the family has none, or does not say.
        """
        return None

    def projections(self, layer: int, names: frozenset[str]) -> dict[str, Projection]:
        """Where the query, key and value states of a layer can be read.

        Args:
            layer: Decoder layer.
            names: Any of ``query``, ``key``, ``value``.

        Raises:
            UnsupportedModelError: The attention module is not built in a known way.
        """
        attention: Any = self._required_attention(layer)
        heads, own = self.num_heads(layer), structure.layer_config(self.text_config, layer)
        queries_per_key = getattr(attention, "num_key_value_groups", None)
        if queries_per_key:
            key_heads = heads // int(queries_per_key)
        else:
            key_heads = int(getattr(own, "num_key_value_heads", None) or heads)
        head_dim = int(getattr(attention, "head_dim", None) or own.hidden_size // heads)
        return {name: projection(attention, name, heads, key_heads, head_dim) for name in sorted(names)}

    def entering_norm(self, layer: int) -> Callable[[Tensor], Tensor]:
        """What a layer does to the hidden states that enter it, before its attention projects them.

        Returns:
            ``norm(hidden [batch, rows, dim])``, of the same shape.

        Raises:
            UnsupportedModelError: The layer is not built in a known way.
        """
        self._required_attention(layer)
        return structure.entering_norm(self.layers[layer])

    def final_norm(self) -> Callable[[Tensor], Tensor]:
        """The norm that the decoder applies behind its last layer.

        Returns:
            ``norm(hidden [..., dim])``, of the same shape.

        Raises:
            UnsupportedModelError: The decoder is not built in a known way.
        """
        return structure.final_norm(self.decoder)

    def rotary(self, layer: int) -> Rotate:
        """The family's own rotary embedding for one tensor.

        Returns:
            ``rotate(states, cos, sin)`` for ``states`` ``[batch, heads, rows, head_dim]``.

        Raises:
            UnsupportedModelError: Single attention rows cannot be computed as the layer computes them.
        """
        return rotation(self._required_attention(layer))

    def check_attention_rows(self, layer: int) -> None:
        """Refuse early where single attention rows cannot be computed.

        Raises:
            UnsupportedModelError: See :meth:`rotary`; or the layer is not given its rotary embedding.
            UnsupportedFeatureError: The model uses flex attention.
        """
        self.rotary(layer)
        structure.check_position_embeddings(self.layers[layer], self.layer_signature.position_embeddings)
        if self.attention_implementation == "flex_attention":
            raise UnsupportedFeatureError("flex_attention is not supported", "use sdpa, eager or flash_attention_2")

    def _required_attention(self, layer: int) -> nn.Module:
        attention = self.attention(layer)
        if attention is None:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: layer {layer} ({self.layer_type(layer)}) has no attention",
                "use a scorer that reads hidden states only, or prune before another layer",
            )
        return attention
