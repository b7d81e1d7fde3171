"""InternVL: an image is one or more tiles in one unbroken run of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenprune.adapters.base import VisionAttention
from tokenprune.adapters.towers import separate_images, tower_of
from tokenprune.adapters.visuals import Item, Kind, VisualAdapter, square


class InternVLAdapter(VisualAdapter):
    """``internvl``.

    The inputs hold tiles and do not say which image a tile is of; but the processor fences every image, so a run of
    tokens is one image. A video's frames are fenced in the same way, and each counts as an image. The frame of a token
    is its tile: the tiles' arrangement in the image is unknown, too.
    """

    def vision_attention(self, layer: int) -> VisionAttention:
        """See :meth:`tokenprune.adapters.base.Adapter.vision_attention`."""
        factor = round(1 / float(self.config.downsample_ratio))
        dropped = getattr(self.config, "vision_feature_select_strategy", "default") == "default"
        tower = tower_of(self.model, "vision_tower")
        return separate_images(tower, layer, int(dropped), lambda _: factor) or super().vision_attention(layer)

    def sizes(self, call: Mapping[str, Any], kind: Kind, count: int) -> list[int] | None:
        """See :meth:`VisualAdapter.sizes`."""
        return None

    def places(self, call: Mapping[str, Any], item: Item) -> Tensor | None:
        """See :meth:`VisualAdapter.places`."""
        tiles, rest = divmod(item.size, int(self.config.image_seq_length))
        return None if rest else square(item.size, tiles)
