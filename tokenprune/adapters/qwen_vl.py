"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: grids of patches, a few of them merged to one token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.visuals import Item, Kind, VisualAdapter, feature_sizes, lattice


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


def _first(breaks: Tensor) -> int:
    """How many entries come before the first break between two of them."""
    where = breaks.nonzero()
    return int(where[0, 0]) + 1 if len(where) else len(breaks) + 1
