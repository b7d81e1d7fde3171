"""Video-LLaVA: images as in LLaVA-1.5; every frame of a video begins with its class token."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenprune.adapters.grids import square
from tokenprune.adapters.image_video import ImageVideoAdapter
from tokenprune.adapters.items import Item
from tokenprune.adapters.modalities import Modality, pixels
from tokenprune.adapters.towers import TowerSite, find_tower, image_batch_site


class VideoLlavaAdapter(ImageVideoAdapter):
    """``video_llava``.

    Where ``generate`` encoded a video before the call, only its frames are left, without the video that each belongs
    to: then every unbroken run of video tokens is one video.
    """

    def item_sizes(self, call: Mapping[str, Any], modality: Modality, count: int) -> list[int] | None:
        """See :meth:`ImageVideoAdapter.item_sizes`."""
        if modality == "video" and pixels(call, modality) is None:
            return None
        return super().item_sizes(call, modality, count)

    def tower_site(self, layer: int) -> TowerSite:
        """See :meth:`tokenprune.adapters.base.Adapter.tower_site`."""
        drops_class_token = self.config.vision_feature_select_strategy == "default"
        site = image_batch_site(find_tower(self.model, "image_tower"), layer, int(drops_class_token))
        return site or super().tower_site(layer)

    def video_tower_site(self, layer: int) -> TowerSite:
        """The tower for videos; its class tokens are features, and so every token counts as a patch."""
        site = image_batch_site(find_tower(self.model, "video_tower"), layer, 0)
        return site or super().video_tower_site(layer)

    def token_coordinates(self, call: Mapping[str, Any], item: Item) -> Tensor | None:
        """See :meth:`ImageVideoAdapter.token_coordinates`."""
        vision = self.config.vision_config
        patches = (int(vision.image_size) // int(vision.patch_size)) ** 2
        return square(item.size, item.size // (patches + 1) if item.modality == "video" else 1)
