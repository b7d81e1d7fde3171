"""InternVL: an image is one or more tiles in one unbroken run of tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tokenprune.adapters.grids import square
from tokenprune.adapters.image_video import ImageVideoAdapter
from tokenprune.adapters.items import Item
from tokenprune.adapters.modalities import Modality
from tokenprune.adapters.placements import TilesAndThumbnail
from tokenprune.adapters.towers import TowerSite, find_tower, image_batch_site
from tokenprune.adapters.views import Placement


class InternVLAdapter(ImageVideoAdapter):
    """``internvl``.

    The inputs hold tiles and do not tell which image a tile belongs to. But the processor puts marks around every
    image, so an unbroken run of tokens is one image. It marks the frames of a video in the same way, and each counts as
    an image. The frame of a token is its tile, because the arrangement of the tiles in the image is unknown, too: it
    follows from the size of the picture.
    """

    def tower_site(self, layer: int) -> TowerSite:
        """See :meth:`tokenprune.adapters.base.Adapter.tower_site`."""
        factor = round(1 / float(self.config.downsample_ratio))
        drops_class_token = getattr(self.config, "vision_feature_select_strategy", "default") == "default"
        tower = find_tower(self.model, "vision_tower")
        site = image_batch_site(tower, layer, int(drops_class_token), lambda _: factor)
        return site or super().tower_site(layer)

    def item_sizes(self, call: Mapping[str, Any], modality: Modality, count: int) -> list[int] | None:
        """See :meth:`ImageVideoAdapter.item_sizes`."""
        return None

    def token_coordinates(self, call: Mapping[str, Any], item: Item) -> Tensor | None:
        """See :meth:`ImageVideoAdapter.token_coordinates`."""
        tiles, rest = divmod(item.size, int(self.config.image_seq_length))
        return None if rest else square(item.size, tiles)

    def placement(self, call: Mapping[str, Any], item: Item) -> Placement:
        """See :meth:`ImageVideoAdapter.placement`."""
        size: Any = self.config.vision_config.image_size
        height, width = size if isinstance(size, Sequence) else (size, size)
        return TilesAndThumbnail((int(height), int(width)))
