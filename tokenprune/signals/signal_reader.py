"""The base class of scorers and pruners: components that read signals of a running model and declare which."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args

from pydantic.fields import FieldInfo

from tokenprune.core.component import Component
from tokenprune.signals.signals import check_needs


class TowerLayerMark:
    """Marks a field as the number of a vision tower layer; see :data:`TowerLayerNumber`."""


#: Type of a field that holds the number of a vision tower layer, negative from the end. The engine records that layer.
#: A field of type ``TowerLayerNumber | None`` may name no layer.
TowerLayerNumber = Annotated[int, TowerLayerMark]


def _holds_tower_layer(field: FieldInfo) -> bool:
    """Whether a field has the type :data:`TowerLayerNumber`, or that or None."""
    parts = (getattr(part, "__metadata__", ()) for part in get_args(field.annotation))
    return TowerLayerMark in field.metadata or any(TowerLayerMark in marks for marks in parts)


class SignalReader(Component):
    """A component that reads signals.

    By default it reads hidden states, the tower layers that its fields name (:data:`TowerLayerNumber`), and what the
    components in its fields read. A component that reads anything else overrides :attr:`needs`.

    Raises:
        ConfigError: A field is invalid, or ``needs`` contains an unknown signal.
    """

    def model_post_init(self, context: Any) -> None:
        """Check the declared signals when the component is made."""
        check_needs(self.needs, type(self).__name__)

    @property
    def needs(self) -> frozenset[str]:
        """Signals that the component reads; any of :data:`tokenprune.signals.signals.SIGNALS`.

        ``query``, ``key``, ``value`` and ``attention`` are captured at layer K-1, and so are the hidden states that
        enter it, ``previous``. ``entering`` is the attention of
        layer K itself on the states that enter it, :attr:`tokenprune.signals.context.PruneContext.entering_probe`.
        ``final_norm`` is the norm behind the last layer, :meth:`tokenprune.signals.context.PruneContext.final_norm`.
        ``embeddings`` stands for the full prompt as it entered layer 0,
        :attr:`tokenprune.signals.context.PruneContext.prompt`. ``text`` stands for the sequence between whose text the
        visual tokens stand: ``hidden_rows``, ``row_mask``, ``text_mask``, ``last_row``, ``visual_rows`` and
        ``positions`` of the context; ``attention``, ``entering`` and ``embeddings`` include it. ``grid`` is where the
        tokens are in their images, :attr:`tokenprune.signals.context.PruneContext.grid` and ``by_frame``;
        ``sample_ids`` are the numbers that seed random choices; ``annotations`` are what the caller hands over.
        ``tower_value`` are the value states of the vision tower's layers in :attr:`vision_layers`. Hidden states of
        the visual tokens can be read even if they are not declared.

        A component can choose from the features of one image alone, before layer 0 and without a prompt, if it declares
        none of ``query``, ``key``, ``value``, ``previous``, ``attention``, ``entering``, ``embeddings``, ``text`` and
        ``annotations``, and :attr:`across_images` is false.
        """
        return frozenset({"hidden"}).union(*(reader.needs for reader in self.inner_readers()))

    @property
    def vision_layers(self) -> frozenset[int]:
        """Layers of the vision tower that the component reads with ``ctx.vision``; negative from the end."""
        fields = type(self).model_fields.items()
        layers = (getattr(self, name) for name, field in fields if _holds_tower_layer(field))
        named = frozenset(layer for layer in layers if layer is not None)
        return named.union(*(reader.vision_layers for reader in self.inner_readers()))

    @property
    def requires_class_token(self) -> bool:
        """Whether the component needs a vision tower with a class token; models without one are then refused.

        If it is false, ``ctx.vision(...).attention`` is the mean attention of all patches in a tower without a class
        token.
        """
        return any(reader.requires_class_token for reader in self.inner_readers())

    @property
    def across_images(self) -> bool:
        """Whether what it says of an image depends on the other images and videos of the prompt.

        If it is false, an image gets by itself what it gets among others, for the same quota. Random choices
        (``sample_ids`` in :attr:`needs`) are the same for the first image of a sample: those for later images depend on
        what stands before them.
        """
        return any(reader.across_images for reader in self.inner_readers())

    def inner_readers(self) -> Iterator[SignalReader]:
        """The components in the fields that read signals, too."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, SignalReader):
                    yield item
