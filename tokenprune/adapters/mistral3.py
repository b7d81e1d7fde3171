"""Mistral 3: Pixtral's tower, patches merged before the language model, a break token after every row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenprune.adapters.base import VisionAttention
from tokenprune.adapters.llava import pixtral_sizes
from tokenprune.adapters.towers import packed_pixtral, tower_of
from tokenprune.adapters.visuals import Item, Kind, VisualAdapter, broken_rows, feature_sizes, pixels


class Mistral3Adapter(VisualAdapter):
    """``mistral3``, ``lighton_ocr``."""

    def vision_attention(self, layer: int) -> VisionAttention:
        """See :meth:`tokenprune.adapters.base.Adapter.vision_attention`."""
        tower = tower_of(self.model, "vision_tower", "vision_encoder")
        return packed_pixtral(tower, layer, int(self.config.spatial_merge_size)) or super().vision_attention(layer)

    def sizes(self, call: Mapping[str, Any], kind: Kind, count: int) -> list[int] | None:
        """See :meth:`VisualAdapter.sizes`."""
        if pixels(call, kind) is None:
            return feature_sizes(call, kind)
        return pixtral_sizes(call, int(self.config.vision_config.patch_size) * int(self.config.spatial_merge_size))

    def places(self, call: Mapping[str, Any], item: Item) -> Tensor | None:
        """See :meth:`VisualAdapter.places`."""
        return broken_rows(item.positions)
