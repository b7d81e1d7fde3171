"""Video-LLaVA: images as in LLaVA-1.5; every frame of a video begins with its class token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenprune.adapters.base import VisionAttention
from tokenprune.adapters.towers import separate_images, tower_of
from tokenprune.adapters.visuals import Item, Kind, VisualAdapter, pixels, square


class VideoLlavaAdapter(VisualAdapter):
    """``video_llava``.

    Where ``generate`` has encoded a video before the call, only its frames are left, and not which video each is of:
    then every unbroken run of video tokens is one video.
    """

    def sizes(self, call: Mapping[str, Any], kind: Kind, count: int) -> list[int] | None:
        """See :meth:`VisualAdapter.sizes`."""
        return None if kind == "video" and pixels(call, kind) is None else super().sizes(call, kind, count)

    def vision_attention(self, layer: int) -> VisionAttention:
        """See :meth:`tokenprune.adapters.base.Adapter.vision_attention`."""
        dropped = self.config.vision_feature_select_strategy == "default"
        found = separate_images(tower_of(self.model, "image_tower"), layer, int(dropped))
        return found or super().vision_attention(layer)

    def video_attention(self, layer: int) -> VisionAttention:
        """The tower for videos; its class tokens are features, and so every token counts as a patch."""
        return separate_images(tower_of(self.model, "video_tower"), layer, 0) or super().video_attention(layer)

    def places(self, call: Mapping[str, Any], item: Item) -> Tensor | None:
        """See :meth:`VisualAdapter.places`."""
        vision = self.config.vision_config
        patches = (int(vision.image_size) // int(vision.patch_size)) ** 2
        return square(item.size, item.size // (patches + 1) if item.kind == "video" else 1)
