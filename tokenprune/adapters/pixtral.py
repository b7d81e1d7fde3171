"""What the families with Pixtral's tower share: images that differ in size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenprune.adapters.modalities import Modality, feature_sizes, pixels


def pixtral_sizes(call: Mapping[str, Any], modality: Modality, pixels_per_token: int) -> list[int] | None:
    """Tokens of each image: from its features where they are given, else from ``image_sizes``.

    Args:
        call: The arguments of the model's forward, by name; ``image_sizes`` are pixels (height and width).
        modality: ``image`` or ``video``.
        pixels_per_token: Pixels on a side of the square that becomes one token.
    """
    if pixels(call, modality) is None:
        return feature_sizes(call, modality)
    sizes = call.get("image_sizes")
    if sizes is None:
        return None
    heights_widths = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    return [(height // pixels_per_token) * (width // pixels_per_token) for height, width in heights_widths]
