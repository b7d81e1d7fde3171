"""The base of scorers and pruners: components that read signals of a running model, and say which."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from tokenprune.component import Component
from tokenprune.signals import check_needs


class TowerLayerMark:
    """Marks a field that names a layer of the vision tower; see :data:`TowerLayerNumber`."""


#: A field that names a layer of the vision tower, negative from the end: the layer is read.
TowerLayerNumber = Annotated[int, TowerLayerMark]


class SignalReader(Component):
    """A component that reads signals.

    By default it reads hidden states, the tower layers that its fields name (:data:`TowerLayerNumber`), and what the
    components in its fields read. A component that reads anything else overrides :attr:`needs`.

    Raises:
        ConfigError: ``needs`` names a signal that does not exist.
    """

    def model_post_init(self, context: Any) -> None:
        """Check the declared signals when the component is made."""
        check_needs(self.needs, type(self).__name__)

    @property
    def needs(self) -> frozenset[str]:
        """Signals to capture: any of ``hidden``, ``query``, ``key``, ``value``, ``attention``, ``embeddings``.

        All but ``hidden`` and ``embeddings`` are captured at layer K-1. ``embeddings`` is the whole prompt as it
        entered layer 0, :attr:`tokenprune.context.PruneContext.prompt`. Hidden states can always be read.
        """
        return frozenset({"hidden"}).union(*(reader.needs for reader in self.inner_readers()))

    @property
    def vision_layers(self) -> frozenset[int]:
        """Layers of the vision tower that are read with ``ctx.vision``; negative from the end."""
        fields = type(self).model_fields.items()
        layers = frozenset(getattr(self, name) for name, field in fields if TowerLayerMark in field.metadata)
        return layers.union(*(reader.vision_layers for reader in self.inner_readers()))

    @property
    def requires_class_token(self) -> bool:
        """Whether ``ctx.vision(...).attention`` has to be a class token's: towers without one are then refused.

        Otherwise the mean attention of all patches takes its place.
        """
        return any(reader.requires_class_token for reader in self.inner_readers())

    def inner_readers(self) -> Iterator[SignalReader]:
        """The components in the fields that read signals themselves."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, SignalReader):
                    yield item
