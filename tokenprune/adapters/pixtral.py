"""Shared by the families with Pixtral's tower: images that differ in size."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenprune.adapters.items import Item
from tokenprune.adapters.modalities import Modality, feature_sizes, pixels
from tokenprune.adapters.placements import Whole
from tokenprune.adapters.views import Placement


def pixtral_sizes(call: Mapping[str, Any], modality: Modality, pixels_per_token: int) -> list[int] | None:
    """Tokens of each image: from its features where they are given, else from ``image_sizes``.

    Args:
        call: The arguments of the model's forward, by name; ``image_sizes`` are pixels (height and width).
        modality: ``image`` or ``video``.
        pixels_per_token: Pixels on a side of the square that becomes one token.
    """
    if pixels(call, modality) is None:
        return feature_sizes(call, modality)
    sizes = image_sizes(call)
    if sizes is None:
        return None
    return [(height // pixels_per_token) * (width // pixels_per_token) for height, width in sizes]


def pixtral_placement(call: Mapping[str, Any], item: Item, pixels_per_token: int) -> Placement:
    """Where an image's tokens lie: over the whole image, but for the rest of pixels that is too narrow for a token.

    Args:
        call: The arguments of the model's forward, by name.
        item: The image.
        pixels_per_token: Pixels on a side of the square that becomes one token.
    """
    sizes = image_sizes(call)
    if sizes is None or item.index is None:
        return Whole()
    height, width = (side // pixels_per_token * pixels_per_token / side for side in sizes[item.index])
    return Whole((0.0, 0.0, width, height))


def image_sizes(call: Mapping[str, Any]) -> list[tuple[int, int]] | None:
    """Height and width in pixels of every image of a call; None where it does not tell."""
    sizes = call.get("image_sizes")
    if sizes is None:
        return None
    heights_widths = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    return [(int(height), int(width)) for height, width in heights_widths]
