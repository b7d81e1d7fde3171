"""LLaVA-NeXT and its kin: an overview of the image, then the image itself in tiles, a newline after every row.

Frame 0 is the overview and frame 1 the image at high resolution without its padding; newline tokens have no place.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.visuals import (
    Item,
    Kind,
    VisualAdapter,
    feature_sizes,
    features,
    lattice,
    pixels,
    uniform_sizes,
)


class LlavaNextAdapter(VisualAdapter):
    """``llava_next``."""

    def sizes(self, call: Mapping[str, Any], kind: Kind, count: int) -> list[int] | None:
        """See :meth:`VisualAdapter.sizes`."""
        if kind == "video":
            return uniform_sizes(call, kind, count)
        given = feature_sizes(call, kind)
        if given is not None:
            return given
        packed = self._packed(call)
        return None if packed is None else [len(marks) for marks in packed]

    def places(self, call: Mapping[str, Any], item: Item) -> Tensor | None:
        """See :meth:`VisualAdapter.places`."""
        if item.kind == "video":
            return self.video_places(item.size)
        newline = None if item.index is None else self._newlines(call, item.index)
        return None if newline is None else anyres_places(newline.cpu(), self._side)

    def video_places(self, size: int) -> Tensor | None:
        """The grid of a video of ``size`` tokens."""
        return None

    @property
    def _side(self) -> int:
        """Rows, and columns, of tokens that one tile is."""
        vision = self.config.vision_config
        return int(vision.image_size) // int(vision.patch_size)

    @property
    def _core(self) -> Any:
        """The module that packs features: inside the model with a head, or the model itself."""
        return getattr(self.model, "model", self.model)

    def _newlines(self, call: Mapping[str, Any], index: int) -> Tensor | None:
        """Which tokens of an image are newlines, bool ``[size]``."""
        given = features(call, "image")
        if given is not None:  # computed by ``generate``, which keeps no image sizes: newlines can be recognised
            return (given[index] == self._core.image_newline.to(given[index])).all(-1)  # type: ignore[no-any-return]
        packed = self._packed(call)
        return None if packed is None else packed[index] < 0

    def _packed(self, call: Mapping[str, Any]) -> list[Tensor] | None:
        """What the model's own packing makes of marks in place of features: 0, and -1 for newlines."""
        images, sizes = pixels(call, "image"), call.get("image_sizes")
        if images is None or sizes is None:
            return None
        core = self._core
        known = torch.as_tensor(sizes).cpu()
        count = sys.modules[type(core).__module__].image_size_to_num_patches
        single = self._single_tiles(call, len(known))
        marks = [
            torch.zeros(
                1 if one else count(size, self.config.image_grid_pinpoints, int(self.config.vision_config.image_size)),
                self._side**2,
                1,
            )
            for size, one in zip(known, single, strict=True)
        ]
        packed, _ = core.pack_image_features(marks, known, image_newline=torch.tensor([-1.0]), **self._packing(call))
        return [item[:, 0] for item in packed]

    def _single_tiles(self, call: Mapping[str, Any], images: int) -> list[bool]:
        """Which images have an overview only."""
        return [False] * images

    def _packing(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Further arguments of the model's packing."""
        return {"vision_feature_select_strategy": self.config.vision_feature_select_strategy}


class LlavaNextVideoAdapter(LlavaNextAdapter):
    """``llava_next_video``: the frames of a video are pooled."""

    def video_places(self, size: int) -> Tensor | None:
        """See :meth:`LlavaNextAdapter.video_places`."""
        return frame_places(size, self._side // int(self.config.spatial_pool_stride))


class LlavaOnevisionAdapter(LlavaNextAdapter):
    """``llava_onevision``: large images are scaled down, videos are pooled and end with one newline."""

    def video_places(self, size: int) -> Tensor | None:
        """See :meth:`LlavaNextAdapter.video_places`."""
        places = frame_places(size - 1, math.ceil(self._side / 2))
        return None if places is None else torch.cat([places, torch.full((1, 3), -1)])

    def _single_tiles(self, call: Mapping[str, Any], images: int) -> list[bool]:
        given = call.get("batch_num_images")
        if given is None:
            return super()._single_tiles(call, images)
        counts = torch.as_tensor(given).tolist()
        return [count != 1 for count in counts for _ in range(count)]

    def _packing(self, call: Mapping[str, Any]) -> dict[str, Any]:
        return {"vision_aspect_ratio": self.config.vision_aspect_ratio}


def anyres_places(newline: Tensor, side: int) -> Tensor | None:
    """Places of one image's tokens: an overview of ``side * side``, then rows that end with a newline.

    Args:
        newline: Which tokens are newlines, bool ``[size]``.
        side: Rows, and columns, of the overview.
    """
    overview, rows = side * side, int(newline[side * side :].sum())
    columns, rest = divmod(int((~newline[overview:]).sum()), max(rows, 1))
    if rest or len(newline) < overview:
        return None
    places = torch.full((len(newline), 3), -1)
    places[:overview] = lattice(1, side, side)
    places[overview:][~newline[overview:]] = lattice(1, rows, columns, first_frame=1)
    return places


def frame_places(size: int, side: int) -> Tensor | None:
    """Places of a video whose frames are ``side * side`` tokens each."""
    frames, rest = divmod(size, side * side)
    return None if rest else lattice(frames, side, side)
