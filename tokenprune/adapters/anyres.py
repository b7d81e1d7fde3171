"""LLaVA-NeXT and its kin: an overview of the image, then the image itself in tiles, a newline after every row.

Frame 0 is the overview and frame 1 the image at high resolution without its padding; newline tokens have no place.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from tokenprune.adapters.base import VisionAttention
from tokenprune.adapters.towers import separate_images, tower_of
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
from tokenprune.errors import UnsupportedFeatureError
from tokenprune.ops.vision import TowerLayer, cells, scaled

#: Patches that each feature is made of, long ``[features, merged]``, and how much of each, float32; 0 for a newline.
Sources: TypeAlias = tuple[Tensor, Tensor]


class LlavaNextAdapter(VisualAdapter):
    """``llava_next``."""

    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "get_image_features": ("image_sizes", "batch_num_images"),
        "get_video_features": ("pixel_values_videos", "pixel_values"),  # the latter in transformers 5.17
    }

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
        newlines = self._newlines(call)
        if newlines is None or item.index is None:
            return None
        return anyres_places(newlines[item.index].cpu(), self._side)

    def video_places(self, size: int) -> Tensor | None:
        """The grid of a video of ``size`` tokens."""
        return None

    def vision_attention(self, layer: int) -> VisionAttention:
        """See :meth:`tokenprune.adapters.base.Adapter.vision_attention`.

        Tiles are the tower's images. The model puts their patches together again, cuts padding off, and adds newlines:
        a newline receives no attention, and its key is zero. Patches that it pools or scales down count with their
        shares.
        """
        dropped = self.config.vision_feature_select_strategy == "default"
        found = separate_images(tower_of(self.model, "vision_tower"), layer, int(dropped))
        if found is None:
            return super().vision_attention(layer)

        def read(query: Tensor, key: Tensor, rotary: Any, arguments: Mapping[str, Any]) -> TowerLayer:
            seen = found.read(query, key, rotary, arguments)
            patches, shares = self._sources(arguments)
            return replace(seen, cells=patches.to(key.device), shares=shares.to(key.device))

        return replace(found, read=read)

    def _sources(self, arguments: Mapping[str, Any]) -> Sources:
        """What the features of a run of the tower are made of."""
        videos = arguments.get("pixel_values_videos", arguments.get("pixel_values"))
        if videos is not None:
            return repeated(self._video_sources(videos.shape[1]), videos.shape[1] * self._side**2, len(videos))
        sizes = arguments.get("image_sizes")
        if sizes is None:
            raise UnsupportedFeatureError(
                "the vision tower ran, and nothing tells which of its patches became which token",
                "give pixel_values and image_sizes to the model, as the processor does",
            )
        known = torch.as_tensor(sizes).cpu()
        found, before = [], 0
        for size, tiles, marks in zip(known.tolist(), *self._packed_marks(arguments, known), strict=True):
            patches, shares = self._image_sources(size, marks < 0)
            found.append((patches + before, shares))
            before += tiles * self._side**2
        return joined(found)

    def _image_sources(self, size: list[int], newline: Tensor) -> Sources:
        """The same for one image of so many pixels (height and width)."""
        side = self._side
        patches, shares = torch.zeros(len(newline), 4, dtype=torch.long), torch.zeros(len(newline), 4)
        patches[: side**2, 0], shares[: side**2, 0] = torch.arange(side**2), 1.0
        rows = int(newline.sum())
        columns = (len(newline) - side**2) // rows - 1
        if columns:
            module: Any = sys.modules[type(self._core).__module__]
            points, pixels_per_tile = self.config.image_grid_pinpoints, int(self.config.vision_config.image_size)
            tall, wide = module.get_anyres_image_grid_shape(size, points, pixels_per_tile)
            height, width = module.unpad_image(torch.zeros(1, tall * side, wide * side), size).shape[1:]
            row = torch.arange(height)[:, None] + (tall * side - height) // 2
            column = torch.arange(width) + (wide * side - width) // 2
            tile = 1 + row // side * wide + column // side
            number = (tile * side + row % side) * side + column % side
            picked, weight = scaled(height, width, rows, columns)
            inside = ~newline
            inside[: side**2] = False
            patches[inside], shares[inside] = number.flatten()[picked], weight
        return patches, shares

    def _video_sources(self, frames: int) -> Sources:
        """The same for one video."""
        raise UnsupportedFeatureError(f"{self.name!r} has no videos", "give images")

    @property
    def _side(self) -> int:
        """Rows, and columns, of tokens that one tile is."""
        vision = self.config.vision_config
        return int(vision.image_size) // int(vision.patch_size)

    @property
    def _core(self) -> Any:
        """The module that packs features: inside the model with a head, or the model itself."""
        return getattr(self.model, "model", self.model)

    def _newlines(self, call: Mapping[str, Any]) -> list[Tensor] | None:
        """Which tokens of each image are newlines, bool ``[size]``."""
        given = features(call, "image")
        if given is not None:  # computed by ``generate``, which keeps no image sizes: newlines can be recognised
            return [(item == self._core.image_newline.to(item)).all(-1) for item in given]
        packed = self._packed(call)
        return None if packed is None else [marks < 0 for marks in packed]

    def _packed(self, call: Mapping[str, Any]) -> list[Tensor] | None:
        """The marks of the images of a call, if it has their sizes."""
        images, sizes = pixels(call, "image"), call.get("image_sizes")
        if images is None or sizes is None:
            return None
        return self._packed_marks(call, torch.as_tensor(sizes).cpu())[1]

    def _packed_marks(self, call: Mapping[str, Any], sizes: Tensor) -> tuple[list[int], list[Tensor]]:
        """Tiles of each image, and what the model's own packing makes of marks in place of features: -1 is a newline.

        Args:
            call: The arguments of the model or of its image encoder, by name.
            sizes: Pixels of each image, ``[images, 2]``, on the host.
        """
        core = self._core
        count = sys.modules[type(core).__module__].image_size_to_num_patches
        grids, tile = self.config.image_grid_pinpoints, int(self.config.vision_config.image_size)
        single = self._single_tiles(call, len(sizes))
        tiles = [1 if one else int(count(size, grids, tile)) for size, one in zip(sizes, single, strict=True)]
        marks = [torch.zeros(number, self._side**2, 1) for number in tiles]
        packed, _ = core.pack_image_features(marks, sizes, image_newline=torch.tensor([-1.0]), **self._packing(call))
        return tiles, [item[:, 0] for item in packed]

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

    def _video_sources(self, frames: int) -> Sources:
        found = cells(self._side, self._side, int(self.config.spatial_pool_stride))
        return repeated((found, torch.full(found.shape, 1 / found.shape[1])), self._side**2, frames)


class LlavaOnevisionAdapter(LlavaNextAdapter):
    """``llava_onevision``: large images are scaled down, videos are pooled and end with one newline."""

    def video_places(self, size: int) -> Tensor | None:
        """See :meth:`LlavaNextAdapter.video_places`."""
        places = frame_places(size - 1, math.ceil(self._side / 2))
        return None if places is None else torch.cat([places, torch.full((1, 3), -1)])

    def _video_sources(self, frames: int) -> Sources:
        half = math.ceil(self._side / 2)
        shown = repeated(scaled(self._side, self._side, half, half), self._side**2, frames)
        return joined([shown, (torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4))])

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


def repeated(sources: Sources, patches: int, times: int) -> Sources:
    """The same sources for several frames or videos of so many patches, one after the other."""
    return joined([(sources[0] + patches * number, sources[1]) for number in range(times)])


def joined(parts: Sequence[Sources]) -> Sources:
    """Sources one after the other."""
    numbers, shares = zip(*parts, strict=True)
    return torch.cat(numbers), torch.cat(shares)
