"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: grids of patches, a few of them merged to one token."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.downsampling import Downsampling
from tokenprune.adapters.grids import lattice
from tokenprune.adapters.image_video import ImageVideoAdapter
from tokenprune.adapters.items import Item
from tokenprune.adapters.modalities import Modality, feature_sizes
from tokenprune.adapters.placements import Frames
from tokenprune.adapters.towers import PackedPatches, TowerSite, find_tower, packed_site
from tokenprune.adapters.views import Placement
from tokenprune.ops.vision import window_order


class QwenVLAdapter(ImageVideoAdapter):
    """``qwen2_vl``, ``qwen2_5_vl``, ``qwen3_vl``, ``qwen3_vl_moe``.

    Qwen3-VL writes a timestamp between the frames of a video; they are still one group.
    """

    def _token_grids(self, patch_grids: Any) -> list[tuple[int, int, int]]:
        """Frames, rows and columns of tokens of every item, from those of its patches."""
        merge = int(self.config.vision_config.spatial_merge_size)
        return [(t, height // merge, width // merge) for t, height, width in torch.as_tensor(patch_grids).tolist()]

    def _item_grids(self, call: Mapping[str, Any], modality: Modality) -> list[tuple[int, int, int]] | None:
        """Frames, rows and columns of tokens of every item of a call; None where the call does not have them."""
        patch_grids = call.get(f"{modality}_grid_thw")
        return None if patch_grids is None else self._token_grids(patch_grids)

    def placement(self, call: Mapping[str, Any], item: Item) -> Placement:
        """See :meth:`ImageVideoAdapter.placement`. A frame of tokens shows several frames of a video."""
        if item.modality == "image":
            return super().placement(call, item)
        return Frames(int(self.config.vision_config.temporal_patch_size))

    def downsampling(self) -> Downsampling | None:
        """See :meth:`tokenprune.adapters.base.Adapter.downsampling`."""
        vision = self.config.vision_config
        return Downsampling(int(vision.patch_size) * int(vision.spatial_merge_size))

    def tower_site(self, layer: int) -> TowerSite:
        """See :meth:`tokenprune.adapters.base.Adapter.tower_site`."""
        vision = self.config.vision_config
        merge, patch = int(vision.spatial_merge_size), int(vision.patch_size)
        full_layers: Any = getattr(vision, "fullatt_block_indexes", None)  # Qwen2.5-VL: other layers have windows
        number = layer if layer >= 0 else layer + int(vision.depth)

        def pack(arguments: Mapping[str, Any]) -> PackedPatches:
            grids = self._token_grids(arguments["grid_thw"])
            unit = merge * merge  # the patches of a token follow each other
            unit_of_token = torch.arange(sum(map(math.prod, grids)))
            blocks = [(h * w * unit, h * w * unit) for t, h, w in grids for _ in range(t)]
            if full_layers is not None:
                order, lengths = window_order(grids, int(vision.window_size) // merge // patch)
                unit_of_token = order.argsort()
                if number not in full_layers:
                    blocks = list(split_blocks(blocks, [length * unit for length in lengths]))
            return PackedPatches(blocks, unit_of_token[:, None] * unit + torch.arange(unit))

        return packed_site(find_tower(self.model, "visual"), layer, pack) or super().tower_site(layer)

    def item_sizes(self, call: Mapping[str, Any], modality: Modality, count: int) -> list[int] | None:
        """See :meth:`ImageVideoAdapter.item_sizes`."""
        grids = self._item_grids(call, modality)
        return feature_sizes(call, modality) if grids is None else [math.prod(grid) for grid in grids]

    def token_coordinates(self, call: Mapping[str, Any], item: Item) -> Tensor | None:
        """See :meth:`ImageVideoAdapter.token_coordinates`."""
        grids = self._item_grids(call, item.modality)
        if grids is not None and item.index is not None:
            return lattice(*grids[item.index])
        # ``generate`` drops the grids once it has computed the rotary positions (time, row, column) from them
        ids = call.get("position_ids")
        if not isinstance(ids, Tensor) or ids.dim() != 3 or ids.shape[0] < 3:
            return None
        rows, columns = ids[-2:, item.sample, item.positions.to(ids.device)].cpu()
        gap = item.positions.diff() > 1
        if item.size > 1 and torch.equal(rows, columns):
            return None  # plain text positions
        width = _until_break((columns.diff() <= 0) | gap)
        frame = width * _until_break((rows[::width].diff() <= 0) | gap[width - 1 :: width])
        return None if item.size % frame else lattice(item.size // frame, frame // width, width)


def split_blocks(blocks: Sequence[tuple[int, int]], lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Split blocks into windows.

    Args:
        blocks: Patches of each image or frame, and the number that its attention is averaged over.
        lengths: Patches of each window, in the order of the blocks.

    Yields:
        Patches of each window, and the number of its block.
    """
    remaining = iter(lengths)
    for patches, averaged_over in blocks:
        done = 0
        while done < patches:
            length = next(remaining)
            done += length
            yield length, averaged_over


def _until_break(breaks: Tensor) -> int:
    """Number of entries before the first break between two of them."""
    where = breaks.nonzero()
    return int(where[0, 0]) + 1 if len(where) else len(breaks) + 1
