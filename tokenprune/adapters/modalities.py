"""Images and videos among the arguments of a call: their pixels, precomputed features and numbers of tokens."""

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from torch import Tensor

Modality: TypeAlias = Literal["image", "video"]
MODALITIES: tuple[Modality, ...] = ("image", "video")

#: Arguments that hold the pixels of a modality.
PIXELS: dict[Modality, tuple[str, ...]] = {
    "image": ("pixel_values", "pixel_values_images"),
    "video": ("pixel_values_videos",),
}


def pixels(call: Mapping[str, Any], modality: Modality) -> Tensor | None:
    """The pixels of a modality; None where there are none, or ``generate`` encoded them before the call."""
    return next((call[name] for name in PIXELS[modality] if isinstance(call.get(name), Tensor)), None)


def features(call: Mapping[str, Any], modality: Modality) -> Any:
    """Features of a modality that ``generate`` computed before the call: a sequence of tensors, or None."""
    return getattr((call.get("mm_encoder_outputs") or {}).get(modality), "pooler_output", None)


def feature_sizes(call: Mapping[str, Any], modality: Modality) -> list[int] | None:
    """Tokens of each item of a modality from its precomputed features; None where there are none."""
    computed = features(call, modality)
    return None if computed is None else [math.prod(item.shape[:-1]) for item in computed]


def uniform_sizes(call: Mapping[str, Any], modality: Modality, count: int) -> list[int] | None:
    """Tokens of each item where one tensor holds the pixels of all items, which are then equally large.

    Args:
        call: The arguments of the model's forward, by name.
        modality: ``image`` or ``video``.
        count: Placeholder tokens of that modality in the batch.

    Returns:
        None where the items cannot be equally large.
    """
    batch = pixels(call, modality)
    if batch is None:
        return feature_sizes(call, modality)
    each, rest = divmod(count, max(len(batch), 1))
    return None if rest or not each else [each] * len(batch)
