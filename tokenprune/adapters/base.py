"""The contract of an adapter: how a model family tells the engine about itself, and what it may override."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any, ClassVar

from torch import Tensor, nn

from tokenprune.adapters import structure
from tokenprune.adapters.decoder_stack import DecoderStack
from tokenprune.adapters.downsampling import Downsampling
from tokenprune.adapters.layer_signature import LayerSignature
from tokenprune.adapters.layout import VisualLayout, check_not_empty, find_tokens, layout_from_runs, layout_from_sizes
from tokenprune.adapters.towers import TowerSite
from tokenprune.adapters.views import PlacedItem
from tokenprune.core.architecture import Architecture
from tokenprune.errors import TokenPruneError, UnsupportedModelError


class Adapter(ABC):
    """Tells the engine about a model family: its visual tokens and its vision tower. Keeps no state of a call.

    Subclasses override what differs. Families with images and videos extend
    :class:`tokenprune.adapters.image_video.ImageVideoAdapter`, which implements most of this.

    Attributes:
        model: The model.
        name: The family's ``model_type``.
        config: The model's config.
        text_config: The language model's config.
        decoder: The module that holds the decoder layers.
        stack: The decoder layers: how they attend, and what can be read of them.
        layers: The decoder layers themselves.
        visual_ids: Ids of the tokens that stand for visual features.

    Args:
        model: Any transformers model with a decoder and visual inputs.

    Raises:
        UnsupportedModelError: Something that the engine needs cannot be found in the model.
        UnsupportedFeatureError: A decoder layer is wrapped in a module that hides its arguments (FSDP1).
    """

    #: Names of the decoder layers' arguments.
    layer_signature: ClassVar[LayerSignature] = LayerSignature()

    #: Describes the decoder layers; a subclass, where they are not built in the usual way.
    stack_class: ClassVar[type[DecoderStack]] = DecoderStack

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
        self.stack = self.stack_class(model, self.decoder, self.text_config, self.layer_signature)
        self.layers: Sequence[nn.Module] = self.stack.layers
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
        """Sizes and names that decide whether published settings fit the model."""
        return Architecture.of_configs(self.name, self.num_layers, self.config, self.text_config)

    # ---- visual tokens of a call -----------------------------------------------------------------------------

    def visual_mask(self, call: Mapping[str, Any]) -> Tensor | None:
        """Mark the positions that hold visual features, bool ``[batch, seq]``; None when there is no text input.

        Args:
            call: The arguments of the model's forward, by name.
        """
        return find_tokens(self.model, call, self.visual_ids)

    def video_mask(self, call: Mapping[str, Any]) -> Tensor | None:
        """Mark the positions that hold features of videos, bool ``[batch, seq]``; None when that is unknown.

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
            call: The arguments of the model's forward, by name, or what :meth:`without_pixels` left of them.
            layout: Where the visual tokens are.

        Returns:
            One list per sample; None where the family has no token grid.
        """
        return None

    def without_pixels(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Keep of a call's arguments only what :meth:`placed` needs: no memory of pixels, features and caches.

        Args:
            call: The arguments of the model's forward, by name.

        Returns:
            Arguments for which :meth:`placed` returns equal items. Nothing of them is copied to the host.
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

    def downsampling(self) -> Downsampling | None:
        """How a picture is made smaller so that it becomes fewer visual tokens; None where that is not defined."""
        return None

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
        """Like :meth:`tower_site`, for the separate video tower of some families; by default the images' site."""
        return self.tower_site(layer)

    @property
    def tower_layers(self) -> int | None:
        """Layers of the vision tower; None where the adapter does not say how its patches become tokens."""

        def exists(layer: int) -> bool:
            try:
                self.tower_site(layer)
            except TokenPruneError:
                return False
            return True

        return next(layer for layer in count() if not exists(layer)) or None

    def tower_sites(self, layers: Iterable[int]) -> list[tuple[int, TowerSite]]:
        """Some layers of the tower, and where each is observed: in both towers, where videos have one of their own."""
        sites = {}
        for layer in layers:
            for site in (self.tower_site(layer), self.video_tower_site(layer)):
                sites[layer, site.attention] = site
        return [(layer, site) for (layer, _), site in sites.items()]

    def tower_depth(self) -> int:
        """Layers of the vision tower on the way to the language model.

        Layers behind the last one that ``vision_feature_layer`` of the config names do not count: LLaVA-1.5 runs the
        last layer of its tower and does not use what it makes.

        Raises:
            UnsupportedModelError: See :meth:`tower_site`; or no layer is on the way.
        """
        self.tower_site(0)  # says why, where the tower cannot be read
        depth = self.tower_layers or 0
        named = getattr(self.config, "vision_feature_layer", None)
        states = [named] if isinstance(named, int) else named or [depth]  # numbers of states: 0 enters layer 0
        used = min(depth, max(state % (depth + 1) for state in states))
        if not used:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: no layer of its vision tower leads to the language model",
                "use a method that does not read the vision tower",
            )
        return used

    def projector(self, layer: int) -> nn.Module | None:
        """The projector, if it gets the states of this layer of the tower and makes one token of every patch alone.

        Args:
            layer: Layer of the tower; negative from the end.

        Returns:
            A module ``[..., width]`` to ``[..., dim]``. None where the family has none, or does not say.
        """
        return None
