"""Gemma 3 and PaliGemma: every image is the same number of tokens."""

import math

from tokenprune.adapters.image_video import ImageVideoAdapter
from tokenprune.adapters.towers import TowerSite, find_tower, image_batch_site


class Gemma3Adapter(ImageVideoAdapter):
    """``gemma3``, ``paligemma``.

    With pan and scan, Gemma 3 is given crops as further images, and its inputs do not mark them as crops: each counts
    as an image of its own.
    """

    def tower_site(self, layer: int) -> TowerSite:
        """See :meth:`tokenprune.adapters.base.Adapter.tower_site`."""
        pooled = getattr(self.config, "mm_tokens_per_image", None)  # PaliGemma does not pool
        merge_side = None if pooled is None else lambda side: side // math.isqrt(int(pooled))
        site = image_batch_site(find_tower(self.model, "vision_tower"), layer, 0, merge_side)
        return site or super().tower_site(layer)
