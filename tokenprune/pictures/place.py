"""Puts the visual tokens of a sample on the pictures that its user gave."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenprune.adapters.views import WHOLE, PlacedItem, View, part_of
from tokenprune.errors import SampleError, UnsupportedModelError
from tokenprune.pictures.crop import Part, seen_parts

Size = tuple[int, int]


def views_of(
    items: Sequence[PlacedItem], sizes: Sequence[Size], processor: Any
) -> tuple[tuple[View, ...], NDArray[np.int64]]:
    """The token grids of one sample on its pictures.

    Args:
        items: The sample's images and videos, as its adapter places them.
        sizes: Width and height in pixels of the pictures that the user gave, in the order of the prompt: of an image
            itself, of a video all frames.
        processor: The processor that made the model's inputs of them, or None where pictures are taken as they are.

    Returns:
        The views, and (view, row, column) of each visual token in the order of the prompt, int64 ``[tokens, 3]``; -1
        for tokens that are on no picture.

    Raises:
        SampleError: There are more or fewer pictures than the prompt shows, or one has another size than the model saw.
        UnsupportedModelError: The family cannot tell where the tokens of an item are.
        UnsupportedFeatureError: It is not known which part of a picture the processor shows.
    """
    cells = cells_of(items)
    views: list[View] = []
    for item, (first, part) in zip(items, assign(items, sizes, processor), strict=True):
        for view in item.placement.views(item.grids, sizes[first]):
            title = " ".join(filter(None, (part.title, view.title)))
            views.append(View(first + view.picture, part_of(part.box, view.box), view.rows, view.columns, title))
    return tuple(views), cells


def grids_of(items: Sequence[PlacedItem]) -> tuple[tuple[View, ...], NDArray[np.int64]]:
    """The token grids of one sample where its pictures are unknown: each grid is a picture of its own.

    Args:
        items: The sample's images and videos, as its adapter places them.

    Returns:
        See :func:`views_of`.

    Raises:
        UnsupportedModelError: The family cannot tell where the tokens of an item are.
    """
    cells = cells_of(items)
    grids = [grid for item in items for grid in item.grids]
    return tuple(View(number, WHOLE, rows, columns) for number, (rows, columns) in enumerate(grids)), cells


def cells_of(items: Sequence[PlacedItem]) -> NDArray[np.int64]:
    """(grid, row, column) of each visual token in the order of the prompt, grids numbered through the items.

    Raises:
        UnsupportedModelError: The family cannot tell where the tokens of an item are.
    """
    cells: list[Tensor] = []
    grids = 0
    for number, item in enumerate(items):
        if item.coordinates is None:
            raise UnsupportedModelError(
                f"the rows and columns of the visual tokens of {item.modality} {number} cannot be told from this call",
                "call the model with the inputs that its processor makes, input_ids included",
            )
        coordinates = item.coordinates.clone()
        coordinates[coordinates[:, 0] >= 0, 0] += grids
        cells.append(coordinates)
        grids += len(item.grids)
    if not items:
        return np.zeros((0, 3), dtype=np.int64)
    order = torch.cat([item.positions for item in items]).argsort(stable=True)
    found: NDArray[np.int64] = torch.cat(cells)[order].numpy()
    return found


def assign(items: Sequence[PlacedItem], sizes: Sequence[Size], processor: Any) -> list[tuple[int, Part]]:
    """The first picture of each item, and the part of it that the item shows.

    Raises:
        SampleError: The pictures do not add up to the items.
    """
    counts = counts_of(items, len(sizes))
    shown: list[tuple[int, Part]] = []
    parts: list[Part] = []  # of the last picture, which the next items show
    first = 0
    for item, count in zip(items, counts, strict=True):
        if parts and item.modality == "image":
            shown.append((first - 1, parts.pop(0)))
            continue
        if first >= len(sizes):
            raise wrong_number(items, sum(counts), len(sizes))
        head, *parts = seen_parts(processor, sizes[first], item.modality)
        shown.append((first, head))
        first += count
    if first != len(sizes):
        raise wrong_number(items, first, len(sizes))
    if parts:
        raise SampleError(
            f"the processor cuts {len(parts)} crops from picture {first - 1} that the prompt does not show",
            "give the pictures that the processor was given, in their order, and the processor as it was then",
        )
    return shown


def counts_of(items: Sequence[PlacedItem], given: int) -> list[int]:
    """The number of pictures that each item is made of. A video's last frame of tokens may be made of fewer.

    Raises:
        SampleError: The number of pictures given fits in no way, or in several.
    """
    bounds = [item.placement.pictures(len(item.grids)) for item in items]
    fewest, most = [low for low, _ in bounds], [high for _, high in bounds]
    if fewest == most or given == sum(fewest):
        return fewest
    if given == sum(most):
        return most
    open_items = [number for number, (low, high) in enumerate(bounds) if low < high]
    if not sum(fewest) < given < sum(most):
        raise wrong_number(items, f"{sum(fewest)} to {sum(most)}", given)
    if len(open_items) > 1:
        raise SampleError(
            f"{given} pictures were given for {len(open_items)} videos: which of them ends early is not known",
            "give videos whose numbers of frames are even",
        )
    fewest[open_items[0]] += given - sum(fewest)
    return fewest


def wrong_number(items: Sequence[PlacedItem], needed: int | str, given: int) -> SampleError:
    """The error for too many pictures, or too few."""
    videos = sum(item.modality == "video" for item in items)
    kinds = [(len(items) - videos, "images"), (videos, "videos")]
    what = " and ".join(f"{count} {kind}" for count, kind in kinds if count)
    return SampleError(
        f"the prompt shows {what or 'no images'}, which take {needed} pictures, but {given} were given",
        "give every image, and every frame of every video, in the order of the prompt",
    )
