"""Gemma 3 and PaliGemma: every image is the same number of tokens."""

from __future__ import annotations

import math

from tokenprune.adapters.base import VisionAttention
from tokenprune.adapters.towers import separate_images, tower_of
from tokenprune.adapters.visuals import VisualAdapter


class Gemma3Adapter(VisualAdapter):
    """``gemma3``, ``paligemma``.

    With pan and scan, Gemma 3 is given crops as further images, and nothing in its inputs says that they are crops:
    each counts as an image of its own.
    """

    def vision_attention(self, layer: int) -> VisionAttention:
        """See :meth:`tokenprune.adapters.base.Adapter.vision_attention`."""
        pooled = getattr(self.config, "mm_tokens_per_image", None)  # PaliGemma pools nothing
        merged = None if pooled is None else lambda side: side // math.isqrt(int(pooled))
        found = separate_images(tower_of(self.model, "vision_tower"), layer, 0, merged)
        return found or super().vision_attention(layer)
