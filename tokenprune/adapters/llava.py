"""LLaVA-1.5 and VipLLaVA: one tensor of images, each as many tokens as the tower has patches."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tokenprune.adapters.downsampling import Downsampling
from tokenprune.adapters.grids import broken_rows, square
from tokenprune.adapters.image_video import ImageVideoAdapter
from tokenprune.adapters.items import Item
from tokenprune.adapters.modalities import Modality
from tokenprune.adapters.pixtral import pixtral_placement, pixtral_sizes
from tokenprune.adapters.placements import Whole, covered_by_patches
from tokenprune.adapters.towers import TowerSite, find_tower, image_batch_site, patch_projector, pixtral_site
from tokenprune.adapters.views import Placement


class LlavaAdapter(ImageVideoAdapter):
    """``llava``, ``vipllava``; with a Pixtral tower, images differ in size and other tokens separate their rows."""

    @property
    def _pixtral(self) -> bool:
        return getattr(self.config.vision_config, "model_type", None) == "pixtral"

    def tower_site(self, layer: int) -> TowerSite:
        """See :meth:`tokenprune.adapters.base.Adapter.tower_site`."""
        tower = find_tower(self.model, "vision_tower")
        if self._pixtral:
            site = pixtral_site(tower, layer, 1)
        else:  # "default" drops the class token from the features, "full" keeps every token of the tower
            drops_class_token = getattr(self.config, "vision_feature_select_strategy", "default") == "default"
            site = image_batch_site(tower, layer, int(drops_class_token))
        return site or super().tower_site(layer)

    def downsampling(self) -> Downsampling | None:
        """See :meth:`tokenprune.adapters.base.Adapter.downsampling`."""
        return Downsampling(int(self.config.vision_config.patch_size) if self._pixtral else None)

    def projector(self, layer: int) -> nn.Module | None:
        """See :meth:`tokenprune.adapters.base.Adapter.projector`."""
        return patch_projector(self.model, find_tower(self.model, "vision_tower"), layer)

    def item_sizes(self, call: Mapping[str, Any], modality: Modality, count: int) -> list[int] | None:
        """See :meth:`ImageVideoAdapter.item_sizes`."""
        if not self._pixtral:
            return super().item_sizes(call, modality, count)
        return pixtral_sizes(call, modality, int(self.config.vision_config.patch_size))

    def placement(self, call: Mapping[str, Any], item: Item) -> Placement:
        """See :meth:`ImageVideoAdapter.placement`."""
        vision = self.config.vision_config
        if self._pixtral:
            return pixtral_placement(call, item, int(vision.patch_size))
        return Whole(covered_by_patches(int(vision.image_size), int(vision.patch_size)))

    def token_coordinates(self, call: Mapping[str, Any], item: Item) -> Tensor | None:
        """See :meth:`ImageVideoAdapter.token_coordinates`."""
        return broken_rows(item.positions) if self._pixtral else square(item.size)
