"""LLaVA-NeXT and its kin: an overview of the image, then the image itself in tiles, a newline after every row.

Frame 0 is the overview and frame 1 the image at high resolution without its padding; newlines have no coordinates.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from tokenprune.adapters.grids import lattice
from tokenprune.adapters.image_video import ImageVideoAdapter
from tokenprune.adapters.items import Item
from tokenprune.adapters.modalities import Modality, feature_sizes, features, pixels, uniform_sizes
from tokenprune.adapters.placements import AnyResolution, Frames, covered_by_patches
from tokenprune.adapters.towers import TowerSite, find_tower, image_batch_site, patch_projector
from tokenprune.adapters.views import Placement
from tokenprune.errors import UnsupportedFeatureError
from tokenprune.ops.vision import TowerLayer, bilinear_patches, cell_patches


class Merging(NamedTuple):
    """The patches and weights of each feature, on the host.

    Attributes:
        patches: Patches of each feature, long ``[features, merged]``.
        weights: Weight of each of them, float32 ``[features, merged]``.
    """

    patches: Tensor
    weights: Tensor


def newline(merged: int) -> Merging:
    """One newline: a feature made of no patch, so that all its weights are zero.

    Args:
        merged: Patches per feature of the merging that it is concatenated to.
    """
    return Merging(torch.zeros(1, merged, dtype=torch.long), torch.zeros(1, merged))


def repeat(merging: Merging, patches: int, times: int) -> Merging:
    """The merging of one frame or video repeated for ``times`` of them, which have ``patches`` patches each."""
    return concatenate([Merging(merging.patches + patches * number, merging.weights) for number in range(times)])


def concatenate(mergings: Sequence[Merging]) -> Merging:
    """Join mergings whose patches are already numbered over all of them."""
    patches, weights = zip(*mergings, strict=True)
    return Merging(torch.cat(patches), torch.cat(weights))


class LlavaNextAdapter(ImageVideoAdapter):
    """``llava_next``."""

    encoders: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "get_image_features": ("image_sizes", "batch_num_images"),
        "get_video_features": ("pixel_values_videos", "pixel_values"),  # the latter in transformers 5.17
    }

    def item_sizes(self, call: Mapping[str, Any], modality: Modality, count: int) -> list[int] | None:
        """See :meth:`ImageVideoAdapter.item_sizes`."""
        if modality == "video":
            return uniform_sizes(call, modality, count)
        sizes = feature_sizes(call, modality)
        if sizes is not None:
            return sizes
        newlines = self._newlines(call)
        return None if newlines is None else list(map(len, newlines))

    def token_coordinates(self, call: Mapping[str, Any], item: Item) -> Tensor | None:
        """See :meth:`ImageVideoAdapter.token_coordinates`."""
        if item.modality == "video":
            return self.video_coordinates(item.size)
        newlines = self._newlines(call)
        if newlines is None or item.index is None:
            return None
        return anyres_coordinates(newlines[item.index].cpu(), self._side)

    def video_coordinates(self, size: int) -> Tensor | None:
        """(frame, row, column) of each token of a video of ``size`` tokens, long ``[size, 3]``."""
        return None

    def tower_site(self, layer: int) -> TowerSite:
        """See :meth:`tokenprune.adapters.base.Adapter.tower_site`.

        The tower's images are tiles. The model puts their patches together again, cuts padding off, and adds newlines,
        which receive no attention and have zero keys. Patches that it pools or scales down count with their weights.
        """
        drops_class_token = self.config.vision_feature_select_strategy == "default"
        site = image_batch_site(find_tower(self.model, "vision_tower"), layer, int(drops_class_token))
        if site is None:
            return super().tower_site(layer)
        read_patches = site.read

        def read(query: Tensor, key: Tensor, rotary: Any, arguments: Mapping[str, Any]) -> TowerLayer:
            tower_layer = read_patches(query, key, rotary, arguments)
            patches, weights = self._merging(arguments)
            heaviest = patches.gather(1, weights.argmax(1, keepdim=True))[:, 0]
            return replace(
                tower_layer,
                feature_patches=patches.to(key.device),
                patch_weights=weights.to(key.device),
                tiles=(heaviest // self._side**2).masked_fill(weights.sum(1) == 0, -1),
            )

        return replace(site, read=read)

    def projector(self, layer: int) -> nn.Module | None:
        """See :meth:`tokenprune.adapters.base.Adapter.projector`. Only where the model neither pools nor scales."""
        if type(self)._video_merging is not LlavaNextAdapter._video_merging:
            return None
        return patch_projector(self.model, find_tower(self.model, "vision_tower"), layer)

    def _merging(self, arguments: Mapping[str, Any]) -> Merging:
        """The patches and weights of all features of a run of the tower."""
        videos = arguments.get("pixel_values_videos", arguments.get("pixel_values"))
        if videos is not None:
            frames = videos.shape[1]
            return repeat(self._video_merging(frames), frames * self._side**2, len(videos))
        image_sizes = arguments.get("image_sizes")
        if image_sizes is None:
            raise UnsupportedFeatureError(
                "the vision tower ran without image_sizes: its patches cannot be assigned to tokens",
                "give pixel_values and image_sizes to the model, as the processor does",
            )
        sizes = torch.as_tensor(image_sizes).cpu()
        images, before = [], 0
        for size, tiles, newlines in zip(sizes.tolist(), *self._pack(arguments, sizes), strict=True):
            patches, weights = self._image_merging(size, newlines)
            images.append(Merging(patches + before, weights))
            before += tiles * self._side**2
        return concatenate(images)

    def _image_merging(self, size: list[int], newlines: Tensor) -> Merging:
        """The patches and weights of one image's features.

        Args:
            size: Height and width of the image in pixels.
            newlines: Features that are newlines, bool ``[features]``.
        """
        side = self._side
        overview = side**2
        patches, weights = torch.zeros(len(newlines), 4, dtype=torch.long), torch.zeros(len(newlines), 4)
        patches[:overview, 0], weights[:overview, 0] = torch.arange(overview), 1.0
        rows = int(newlines.sum())
        columns = (len(newlines) - overview) // rows - 1
        if columns:
            module: Any = sys.modules[type(self._core).__module__]
            pinpoints, tile_pixels = self.config.image_grid_pinpoints, int(self.config.vision_config.image_size)
            tile_rows, tile_columns = module.get_anyres_image_grid_shape(size, pinpoints, tile_pixels)
            tall, wide = tile_rows * side, tile_columns * side
            height, width = module.unpad_image(torch.zeros(1, tall, wide), size).shape[1:]
            row = torch.arange(height)[:, None] + (tall - height) // 2
            column = torch.arange(width) + (wide - width) // 2
            tile = 1 + row // side * tile_columns + column // side  # tile 0 is the overview
            patch = (tile * side + row % side) * side + column % side
            picked, picked_weights = bilinear_patches(height, width, rows, columns)
            inside = ~newlines
            inside[:overview] = False
            patches[inside], weights[inside] = patch.flatten()[picked], picked_weights
        return Merging(patches, weights)

    def _video_merging(self, frames: int) -> Merging:
        """The patches and weights of one video's features."""
        raise UnsupportedFeatureError(f"{self.name!r} has no videos", "give images")

    @property
    def _side(self) -> int:
        """Rows, and columns, of tokens in one tile."""
        vision = self.config.vision_config
        return int(vision.image_size) // int(vision.patch_size)

    @property
    def _core(self) -> Any:
        """The module that packs features: inside the model with a head, or the model itself."""
        return getattr(self.model, "model", self.model)

    def _newlines(self, call: Mapping[str, Any]) -> list[Tensor] | None:
        """Mark the tokens of each image that are newlines, bool ``[size]``; None where the call does not tell."""
        computed = features(call, "image")
        if computed is not None:  # ``generate`` keeps no image sizes, but newlines are recognised by their embedding
            return [self._is_newline(item)[:, 0] for item in computed]
        image_sizes = call.get("image_sizes")
        if pixels(call, "image") is None or image_sizes is None:
            return None
        return self._pack(call, torch.as_tensor(image_sizes).cpu())[1]

    def _is_newline(self, features: Tensor) -> Tensor:
        """Mark the features of an image that are newlines, bool ``[size, 1]``."""
        if features.dtype == torch.bool:  # what feature_shapes() kept
            return features
        newline: Tensor = self._core.image_newline.to(features)
        return (features == newline).all(-1, keepdim=True)

    def feature_shapes(self, modality: Modality, computed: Any) -> Sequence[Tensor]:
        """See :meth:`ImageVideoAdapter.feature_shapes`. Of images, the newlines are marked, bool ``[size, 1]`` each."""
        if modality == "video":
            return super().feature_shapes(modality, computed)
        return [self._is_newline(item) for item in computed]

    def placement(self, call: Mapping[str, Any], item: Item) -> Placement:
        """See :meth:`ImageVideoAdapter.placement`."""
        vision = self.config.vision_config
        tile, patch = int(vision.image_size), int(vision.patch_size)
        if item.modality == "video":
            return Frames(box=covered_by_patches(tile, patch))
        resolutions = tuple((int(height), int(width)) for height, width in self.config.image_grid_pinpoints)
        return AnyResolution(resolutions, tile, self._side, patch)

    def _pack(self, call: Mapping[str, Any], sizes: Tensor) -> tuple[list[int], list[Tensor]]:
        """Let the model pack zeros in place of features, and -1 in place of its newline embedding.

        Args:
            call: The arguments of the model or of its image encoder, by name.
            sizes: Pixels of each image, ``[images, 2]``, on the host.

        Returns:
            Tiles of each image, and which of its tokens are newlines, bool ``[size]``.
        """
        core = self._core
        count_tiles = sys.modules[type(core).__module__].image_size_to_num_patches
        pinpoints, tile_pixels = self.config.image_grid_pinpoints, int(self.config.vision_config.image_size)
        overview_only = self._overview_only(call, len(sizes))
        tiles = [
            1 if single else int(count_tiles(size, pinpoints, tile_pixels))
            for size, single in zip(sizes, overview_only, strict=True)
        ]
        zeros = [torch.zeros(count, self._side**2, 1) for count in tiles]
        packed, _ = core.pack_image_features(
            zeros, sizes, image_newline=torch.tensor([-1.0]), **self._packing_arguments(call)
        )
        return tiles, [item[:, 0] < 0 for item in packed]

    def _overview_only(self, call: Mapping[str, Any], images: int) -> list[bool]:
        """Whether each image has an overview only."""
        return [False] * images

    def _packing_arguments(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """Further arguments of the model's packing."""
        return {"vision_feature_select_strategy": self.config.vision_feature_select_strategy}


class LlavaNextVideoAdapter(LlavaNextAdapter):
    """``llava_next_video``: the frames of a video are pooled."""

    def video_coordinates(self, size: int) -> Tensor | None:
        """See :meth:`LlavaNextAdapter.video_coordinates`."""
        return frame_coordinates(size, self._side // int(self.config.spatial_pool_stride))

    def _video_merging(self, frames: int) -> Merging:
        patches = cell_patches(self._side, self._side, int(self.config.spatial_pool_stride))
        mean = torch.full(patches.shape, 1 / patches.shape[1])
        return repeat(Merging(patches, mean), self._side**2, frames)


class LlavaOnevisionAdapter(LlavaNextAdapter):
    """``llava_onevision``: large images are scaled down, videos are pooled and end with one newline."""

    @property
    def _frame_side(self) -> int:
        """Rows, and columns, of tokens in one frame of a video."""
        return math.ceil(self._side / 2)

    def video_coordinates(self, size: int) -> Tensor | None:
        """See :meth:`LlavaNextAdapter.video_coordinates`."""
        coordinates = frame_coordinates(size - 1, self._frame_side)
        return None if coordinates is None else torch.cat([coordinates, torch.full((1, 3), -1)])

    def placement(self, call: Mapping[str, Any], item: Item) -> Placement:
        """See :meth:`ImageVideoAdapter.placement`. Several images of a sample are padded to squares and not tiled."""
        placement = super().placement(call, item)
        if not isinstance(placement, AnyResolution):
            return placement
        return replace(placement, squared=True, most=int(self.config.vision_aspect_ratio.removeprefix("anyres_max_")))

    def _video_merging(self, frames: int) -> Merging:
        frame = Merging(*bilinear_patches(self._side, self._side, self._frame_side, self._frame_side))
        return concatenate([repeat(frame, self._side**2, frames), newline(4)])

    def _overview_only(self, call: Mapping[str, Any], images: int) -> list[bool]:
        images_of_sample = call.get("batch_num_images")
        if images_of_sample is None:
            return super()._overview_only(call, images)
        counts = torch.as_tensor(images_of_sample).tolist()
        return [count != 1 for count in counts for _ in range(count)]

    def _packing_arguments(self, call: Mapping[str, Any]) -> dict[str, Any]:
        return {"vision_aspect_ratio": self.config.vision_aspect_ratio}


def anyres_coordinates(newlines: Tensor, side: int) -> Tensor | None:
    """Coordinates of one image's tokens: an overview of ``side * side``, then rows that end with a newline.

    Args:
        newlines: Tokens that are newlines, bool ``[size]``.
        side: Rows, and columns, of the overview.
    """
    overview, rows = side * side, int(newlines[side * side :].sum())
    columns, rest = divmod(int((~newlines[overview:]).sum()), max(rows, 1))
    if rest or len(newlines) < overview:
        return None
    coordinates = torch.full((len(newlines), 3), -1)
    coordinates[:overview] = lattice(1, side, side)
    coordinates[overview:][~newlines[overview:]] = lattice(1, rows, columns, first_frame=1)
    return coordinates


def frame_coordinates(size: int, side: int) -> Tensor | None:
    """Coordinates of a video whose frames are ``side * side`` tokens each; None where ``size`` does not fit."""
    frames, rest = divmod(size, side * side)
    return None if rest else lattice(frames, side, side)
