"""Mistral 3 and LightOnOCR: Pixtral's tower, patches merged before the language model."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenprune.adapters.downsampling import Downsampling
from tokenprune.adapters.grids import broken_rows, lattice
from tokenprune.adapters.image_video import ImageVideoAdapter
from tokenprune.adapters.items import Item
from tokenprune.adapters.modalities import Modality
from tokenprune.adapters.pixtral import image_sizes, pixtral_placement, pixtral_sizes
from tokenprune.adapters.towers import TowerSite, find_tower, pixtral_site
from tokenprune.adapters.views import Placement


class Mistral3Adapter(ImageVideoAdapter):
    """``mistral3``, ``lighton_ocr``.

    LightOnOCR's processor writes an image as one unbroken run of tokens. Its rows follow from ``image_sizes`` alone,
    which ``generate`` does not pass on.
    """

    @property
    def _breaks_rows(self) -> bool:
        """Whether another token follows every row of tokens."""
        return getattr(self.config, "model_type", None) != "lighton_ocr"

    @property
    def _token_pixels(self) -> int:
        """Pixels on a side of the square that becomes one token."""
        return int(self.config.vision_config.patch_size) * self._merge_side

    @property
    def _merge_side(self) -> int:
        """Patches on a side of the square that becomes one token."""
        return int(self.config.spatial_merge_size)

    def tower_site(self, layer: int) -> TowerSite:
        """See :meth:`tokenprune.adapters.base.Adapter.tower_site`."""
        tower = find_tower(self.model, "vision_tower", "vision_encoder")
        return pixtral_site(tower, layer, self._merge_side) or super().tower_site(layer)

    def downsampling(self) -> Downsampling | None:
        """See :meth:`tokenprune.adapters.base.Adapter.downsampling`."""
        return Downsampling(self._token_pixels)

    def item_sizes(self, call: Mapping[str, Any], modality: Modality, count: int) -> list[int] | None:
        """See :meth:`ImageVideoAdapter.item_sizes`."""
        return pixtral_sizes(call, modality, self._token_pixels)

    def token_coordinates(self, call: Mapping[str, Any], item: Item) -> Tensor | None:
        """See :meth:`ImageVideoAdapter.token_coordinates`."""
        sizes = image_sizes(call)
        if sizes is not None and item.index is not None:
            height, width = sizes[item.index]
            return lattice(1, height // self._token_pixels, width // self._token_pixels)
        return broken_rows(item.positions) if self._breaks_rows else None

    def placement(self, call: Mapping[str, Any], item: Item) -> Placement:
        """See :meth:`ImageVideoAdapter.placement`."""
        return pixtral_placement(call, item, self._token_pixels)
