"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: grids of patches, a few of them merged to one token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.base import VisionAttention
from tokenprune.adapters.towers import Packed, packed_images, tower_of
from tokenprune.adapters.visuals import Item, Kind, VisualAdapter, feature_sizes, lattice
from tokenprune.ops.vision import windows


class QwenVLAdapter(VisualAdapter):
    """``qwen2_vl``, ``qwen2_5_vl``, ``qwen3_vl``, ``qwen3_vl_moe``.

    Qwen3-VL writes a timestamp between the frames of a video; they are still one group.
    """

    def _grids(self, call: Mapping[str, Any], kind: Kind) -> list[tuple[int, int, int]] | None:
        """Frames, rows and columns of tokens of every item."""
        given = call.get(f"{kind}_grid_thw")
        if given is None:
            return None
        merge = int(self.config.vision_config.spatial_merge_size)
        return [(t, height // merge, width // merge) for t, height, width in torch.as_tensor(given).tolist()]

    def vision_attention(self, layer: int) -> VisionAttention:
        """See :meth:`tokenprune.adapters.base.Adapter.vision_attention`."""
        vision = self.config.vision_config
        merge, patch = int(vision.spatial_merge_size), int(vision.patch_size)
        whole: Any = getattr(vision, "fullatt_block_indexes", None)  # Qwen2.5-VL: the other layers see windows
        number = layer if layer >= 0 else layer + int(vision.depth)

        def pack(arguments: Mapping[str, Any]) -> Packed:
            grids = [(t, h // merge, w // merge) for t, h, w in torch.as_tensor(arguments["grid_thw"]).tolist()]
            unit = merge * merge  # the patches of a cell follow each other
            place = torch.arange(sum(map(math.prod, grids)))
            blocks = [(h * w * unit, h * w * unit) for t, h, w in grids for _ in range(t)]
            if whole is not None:
                order, lengths = windows(grids, int(vision.window_size) // merge // patch)
                place = order.argsort()
                if number not in whole:
                    blocks = list(parts_of(blocks, [length * unit for length in lengths]))
            return Packed(blocks, place[:, None] * unit + torch.arange(unit))

        return packed_images(tower_of(self.model, "visual"), layer, pack) or super().vision_attention(layer)

    def sizes(self, call: Mapping[str, Any], kind: Kind, count: int) -> list[int] | None:
        """See :meth:`VisualAdapter.sizes`."""
        grids = self._grids(call, kind)
        if grids is None:
            return feature_sizes(call, kind)
        return [frames * rows * columns for frames, rows, columns in grids]

    def places(self, call: Mapping[str, Any], item: Item) -> Tensor | None:
        """See :meth:`VisualAdapter.places`."""
        grids = self._grids(call, item.kind)
        if grids is not None and item.index is not None:
            return lattice(*grids[item.index])
        ids = call.get("position_ids")
        if not isinstance(ids, Tensor) or ids.dim() != 3 or ids.shape[0] < 3:
            return None
        # ``generate`` has computed the rotary positions (time, row, column) and dropped the grids
        rows, columns = ids[-2:, item.sample, item.positions.to(ids.device)].cpu()
        gap = item.positions.diff() > 1
        if item.size > 1 and torch.equal(rows, columns):
            return None  # plain text positions
        width = _first((columns.diff() <= 0) | gap)
        frame = width * _first((rows[::width].diff() <= 0) | gap[width - 1 :: width])
        return None if item.size % frame else lattice(item.size // frame, frame // width, width)


def parts_of(blocks: Sequence[tuple[int, int]], lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut blocks into parts: the length of each part, and what its block belongs to."""
    left = iter(lengths)
    for block, whole in blocks:
        done = 0
        while done < block:
            length = next(left)
            done += length
            yield length, whole


def _first(breaks: Tensor) -> int:
    """How many entries come before the first break between two of them."""
    where = breaks.nonzero()
    return int(where[0, 0]) + 1 if len(where) else len(breaks) + 1
