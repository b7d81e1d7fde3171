"""Mistral 3: Pixtral's tower, patches merged before the language model, a break token after every row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenprune.adapters.grids import broken_rows
from tokenprune.adapters.image_video import ImageVideoAdapter
from tokenprune.adapters.items import Item
from tokenprune.adapters.modalities import Modality
from tokenprune.adapters.pixtral import pixtral_sizes
from tokenprune.adapters.towers import TowerSite, find_tower, pixtral_site


class Mistral3Adapter(ImageVideoAdapter):
    """``mistral3``, ``lighton_ocr``."""

    @property
    def _merge_side(self) -> int:
        """Patches on a side of the square that becomes one token."""
        return int(self.config.spatial_merge_size)

    def tower_site(self, layer: int) -> TowerSite:
        """See :meth:`tokenprune.adapters.base.Adapter.tower_site`."""
        tower = find_tower(self.model, "vision_tower", "vision_encoder")
        return pixtral_site(tower, layer, self._merge_side) or super().tower_site(layer)

    def item_sizes(self, call: Mapping[str, Any], modality: Modality, count: int) -> list[int] | None:
        """See :meth:`ImageVideoAdapter.item_sizes`."""
        return pixtral_sizes(call, modality, int(self.config.vision_config.patch_size) * self._merge_side)

    def token_coordinates(self, call: Mapping[str, Any], item: Item) -> Tensor | None:
        """See :meth:`ImageVideoAdapter.token_coordinates`."""
        return broken_rows(item.positions)
