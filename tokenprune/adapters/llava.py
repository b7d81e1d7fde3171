"""LLaVA-1.5 and VipLLaVA: one tensor of images, each as many tokens as the tower has patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenprune.adapters.base import VisionAttention
from tokenprune.adapters.towers import packed_pixtral, separate_images, tower_of
from tokenprune.adapters.visuals import Item, Kind, VisualAdapter, broken_rows, feature_sizes, pixels, square


class LlavaAdapter(VisualAdapter):
    """``llava``, ``vipllava``; with a Pixtral tower images differ in size and their rows stand apart."""

    @property
    def _pixtral(self) -> bool:
        return getattr(self.config.vision_config, "model_type", None) == "pixtral"

    def vision_attention(self, layer: int) -> VisionAttention:
        """See :meth:`tokenprune.adapters.base.Adapter.vision_attention`."""
        tower = tower_of(self.model, "vision_tower")
        # "default" drops the class token from the features, "full" keeps every token of the tower
        dropped = getattr(self.config, "vision_feature_select_strategy", "default") == "default"
        found = packed_pixtral(tower, layer, 1) if self._pixtral else separate_images(tower, layer, int(dropped))
        return found or super().vision_attention(layer)

    def sizes(self, call: Mapping[str, Any], kind: Kind, count: int) -> list[int] | None:
        """See :meth:`VisualAdapter.sizes`."""
        if not self._pixtral:
            return super().sizes(call, kind, count)
        patch = int(self.config.vision_config.patch_size)
        return pixtral_sizes(call, patch) if pixels(call, kind) is not None else feature_sizes(call, kind)

    def places(self, call: Mapping[str, Any], item: Item) -> Tensor | None:
        """See :meth:`VisualAdapter.places`."""
        return broken_rows(item.positions) if self._pixtral else square(item.size)


def pixtral_sizes(call: Mapping[str, Any], pixels_per_token: int) -> list[int] | None:
    """Tokens of each image from ``image_sizes`` (pixels, height and width)."""
    sizes = call.get("image_sizes")
    if sizes is None:
        return None
    heights_widths = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    return [(height // pixels_per_token) * (width // pixels_per_token) for height, width in heights_widths]
