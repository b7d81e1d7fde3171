"""Idefics 3 and SmolVLM: an image is tiles, each fenced by text tokens, and then its overview."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.base import VisionAttention
from tokenprune.adapters.towers import separate_images, tower_of
from tokenprune.adapters.visuals import Item, Kind, Part, VisualAdapter, lattice, run_lengths, square


class Idefics3Adapter(VisualAdapter):
    """``idefics3``, ``smolvlm``.

    The pixels do not say which tiles make an image, but the prompt does. The processor writes every tile as
    ``<fence> <tag> tokens``, a line break after a row of tiles, and the overview last, under a tag of its own and with
    a fence behind it. So the last run of a prompt is an overview, and its tag ends every image. A prompt that is not
    written so makes every run of tokens an image (several, where runs are joined), and so does a video make its frames.

    Frame 0 is the overview and frame 1 the image at high resolution, its tiles put together.
    """

    @property
    def _tile(self) -> int:
        """Tokens of one tile."""
        vision = self.config.vision_config
        return (int(vision.image_size) // int(vision.patch_size)) ** 2 // int(self.config.scale_factor) ** 2

    def vision_attention(self, layer: int) -> VisionAttention:
        """See :meth:`tokenprune.adapters.base.Adapter.vision_attention`."""
        factor = int(self.config.scale_factor)

        def seen(arguments: Mapping[str, Any]) -> Tensor | None:
            mask = arguments.get("patch_attention_mask")
            return None if mask is None else mask.flatten(1)

        found = separate_images(tower_of(self.model, "vision_model"), layer, 0, lambda _: factor, seen)
        return found or super().vision_attention(layer)

    def parts(self, call: Mapping[str, Any], kind: Kind, positions: Sequence[Tensor]) -> list[list[Part]]:
        """See :meth:`VisualAdapter.parts`."""
        ids = call.get("input_ids")
        rows = [None] * len(positions) if ids is None else list(ids.cpu())
        sizes = [self._images(row, where) for row, where in zip(rows, positions, strict=True)]
        return [[(size, None) for size in images] for images in sizes]

    def _images(self, ids: Tensor | None, positions: Tensor) -> list[int]:
        """Sizes of one sample's images."""
        runs = run_lengths(positions)
        tiles = tags_of(ids, positions) if ids is not None else None
        if tiles is None or any(run != self._tile for run in runs):
            return [part for run in runs for part in self._whole(run)]
        sizes, size = [], 0
        for run, tag in zip(runs, tiles, strict=True):
            size += run
            if tag == tiles[-1]:
                sizes.append(size)
                size = 0
        return sizes

    def _whole(self, run: int) -> list[int]:
        """The images in one unbroken run: tiles of one image never touch."""
        return [run] if run % self._tile else [self._tile] * (run // self._tile)

    def places(self, call: Mapping[str, Any], item: Item) -> Tensor | None:
        """See :meth:`VisualAdapter.places`."""
        tile = square(self._tile)
        count, rest = divmod(item.size, self._tile)
        if tile is None or rest or not count:
            return None
        if count == 1:
            return tile
        # tiles of one row stand two tokens apart, a line break makes it three or more
        starts = item.positions[:: self._tile][: count - 1]
        new_row = (starts.diff() > self._tile + 2).tolist()
        columns = (new_row.index(True) if True in new_row else len(new_row)) + 1
        if (count - 1) % columns or new_row != [(i + 1) % columns == 0 for i in range(count - 2)]:
            return None
        corner = lattice(1, (count - 1) // columns, columns, first_frame=1) * torch.tensor([1, *tile.amax(0)[1:] + 1])
        return torch.cat([(corner[:, None] + tile).reshape(-1, 3), tile])


def tags_of(ids: Tensor, positions: Tensor) -> list[int] | None:
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
    found: list[int] = tags.tolist()
    return found
