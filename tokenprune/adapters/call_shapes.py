"""Arguments of a call without what takes memory: pixels, features, embeddings, caches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

#: Axes of the largest tensors of whole numbers that are kept: positions ``[3, batch, seq]``. Masks of pixels have more.
MOST_AXES = 3


def slim_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without the values of floating-point tensors and without objects such as caches.

    Args:
        call: Arguments by name.

    Returns:
        Plain values, and lists of them, as they are. Of tensors, whole numbers and flags are kept as they are; others
        are on the meta device, where only the shape is left. Everything else is left out.
    """
    slim = {name: slim_value(value) for name, value in call.items()}
    return {name: value for name, value in slim.items() if value is not None}


def slim_value(value: Any) -> Any:
    """One argument without what takes memory; None where nothing is left of it."""
    if isinstance(value, Tensor):
        small = not value.is_floating_point() and not value.is_complex() and value.dim() <= MOST_AXES
        return value if small else without_values(value)
    if isinstance(value, list | tuple):
        return [slim_value(part) for part in value]
    return value if isinstance(value, bool | int | float | str) else None


def without_values(tensor: Tensor) -> Tensor:
    """A tensor of the same shape that holds no memory."""
    return torch.empty_like(tensor, device="meta")
