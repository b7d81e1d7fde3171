"""Idefics 3 and SmolVLM: an image is tiles, each between text tokens, and then its overview."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.grids import lattice, square
from tokenprune.adapters.image_video import ImageVideoAdapter
from tokenprune.adapters.items import Item, ItemSize, run_lengths
from tokenprune.adapters.modalities import Modality
from tokenprune.adapters.placements import OverviewAndJoinedTiles
from tokenprune.adapters.towers import TowerSite, find_tower, image_batch_site
from tokenprune.adapters.views import Placement


class Idefics3Adapter(ImageVideoAdapter):
    """``idefics3``, ``smolvlm``.

    The pixels do not tell which tiles make an image, but the prompt does. The processor writes every tile as
    ``<fence> <tag> tokens``, a line break after a row of tiles, and the overview last, with a tag of its own and a
    fence behind it. So the last run of a prompt is an overview, and its tag ends every image. In any other prompt every
    run of tokens is an image (or several, where runs are joined); the frames of a video are images, too.

    Frame 0 is the overview and frame 1 the image at high resolution, its tiles put together.
    """

    @property
    def _tile_size(self) -> int:
        """Tokens of one tile."""
        vision = self.config.vision_config
        return (int(vision.image_size) // int(vision.patch_size)) ** 2 // int(self.config.scale_factor) ** 2

    def tower_site(self, layer: int) -> TowerSite:
        """See :meth:`tokenprune.adapters.base.Adapter.tower_site`."""
        factor = int(self.config.scale_factor)

        def unpadded(arguments: Mapping[str, Any]) -> Tensor | None:
            mask = arguments.get("patch_attention_mask")
            return None if mask is None else mask.flatten(1)

        tower = find_tower(self.model, "vision_model")
        return image_batch_site(tower, layer, 0, lambda _: factor, unpadded) or super().tower_site(layer)

    def sample_items(
        self, call: Mapping[str, Any], modality: Modality, positions: Sequence[Tensor]
    ) -> list[list[ItemSize]]:
        """See :meth:`ImageVideoAdapter.sample_items`."""
        ids = call.get("input_ids")
        rows = [None] * len(positions) if ids is None else list(ids.cpu())
        sizes = [self._image_sizes(row, where) for row, where in zip(rows, positions, strict=True)]
        return [[ItemSize(size, None) for size in images] for images in sizes]

    def _image_sizes(self, ids: Tensor | None, positions: Tensor) -> list[int]:
        """Tokens of each of one sample's images."""
        runs = run_lengths(positions)
        tags = tile_tags(ids, positions) if ids is not None else None
        if tags is None or any(run != self._tile_size for run in runs):
            return [size for run in runs for size in self._split_run(run)]
        sizes, size = [], 0
        for run, tag in zip(runs, tags, strict=True):
            size += run
            if tag == tags[-1]:
                sizes.append(size)
                size = 0
        return sizes

    def _split_run(self, run: int) -> list[int]:
        """Tokens of each image in one unbroken run: two tiles of one image are never adjacent."""
        return [run] if run % self._tile_size else [self._tile_size] * (run // self._tile_size)

    def token_coordinates(self, call: Mapping[str, Any], item: Item) -> Tensor | None:
        """See :meth:`ImageVideoAdapter.token_coordinates`."""
        tile = square(self._tile_size)
        count, rest = divmod(item.size, self._tile_size)
        if tile is None or rest or not count:
            return None
        if count == 1:
            return tile
        # two tokens separate the tiles of one row, and a line break makes it three or more
        starts = item.positions[:: self._tile_size][: count - 1]
        new_row = (starts.diff() > self._tile_size + 2).tolist()
        columns = (new_row.index(True) if True in new_row else len(new_row)) + 1
        if (count - 1) % columns or new_row != [(i + 1) % columns == 0 for i in range(count - 2)]:
            return None
        tile_sides = torch.tensor([1, *tile.amax(0)[1:] + 1])
        corners = lattice(1, (count - 1) // columns, columns, first_frame=1) * tile_sides
        return torch.cat([(corners[:, None] + tile).reshape(-1, 3), tile])

    def placement(self, call: Mapping[str, Any], item: Item) -> Placement:
        """See :meth:`ImageVideoAdapter.placement`."""
        return OverviewAndJoinedTiles()


def tile_tags(ids: Tensor, positions: Tensor) -> list[int] | None:
    """The token before each run of visual tokens; None unless all runs are fenced as the processor does it.

    Args:
        ids: One sample's ``input_ids``, long ``[seq]``.
        positions: Where its visual tokens are.
    """
    if not len(positions):
        return None
    lengths = torch.tensor(run_lengths(positions))
    ends = positions[lengths.cumsum(0) - 1] + 1
    starts = ends - lengths
    if int(starts[0]) < 2 or int(ends[-1]) >= len(ids):
        return None
    fence, tags = ids[ends[-1]], ids[starts - 1]
    if tags[-1] == fence or not bool((ids[starts - 2] == fence).all()):
        return None
    tag_ids: list[int] = tags.tolist()
    return tag_ids
