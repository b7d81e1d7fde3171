"""Pictures, pixels and features made smaller, and processors that do not enlarge them again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tokenprune.core.optional import optional
from tokenprune.models.smaller_grid import Grid

if TYPE_CHECKING:
    from PIL.Image import Image


def averaged(features: Tensor, grid: Grid) -> Tensor:
    """The features of a square picture averaged to fewer: each is the mean of those that its area touches.

    Args:
        features: Floating ``[side * side, dim]``, row by row.
        grid: The rows and columns of the result.

    Returns:
        ``[rows * columns, dim]``.
    """
    side = math.isqrt(len(features))
    cells = features.float().T.reshape(1, -1, side, side)
    return functional.adaptive_avg_pool2d(cells, grid)[0].flatten(1).T.to(features.dtype)


def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels of another size: bicubic, with antialiasing, as processors resize.

    Args:
        pixels: Floating ``[pictures, channels, height, width]``.
        size: The new height and width.
    """
    small = functional.interpolate(pixels.float(), size, mode="bicubic", antialias=True, align_corners=False)
    return small.to(pixels.dtype)


def smaller_image(image: Image, size: tuple[int, int]) -> Image:
    """A picture made smaller: bicubic, with antialiasing.

    Args:
        image: The picture.
        size: The new height and width in pixels.
    """
    pillow = optional("PIL.Image", "smaller pictures", "data")
    plain = image if image.mode == "RGB" else image.convert("RGB")  # a palette cannot be averaged
    return plain.resize((size[1], size[0]), pillow.Resampling.BICUBIC)


def smaller_frame(frame: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A frame of a video made smaller, uint8 ``[height, width, 3]``; see :func:`smaller_image`."""
    pillow = optional("PIL.Image", "smaller pictures", "data")
    return np.asarray(smaller_image(pillow.fromarray(frame), size))


@contextmanager
def not_enlarging(processor: Any) -> Iterator[None]:
    """Inside the block a processor that resizes to a number of pixels has no lower limit. Then it is as before."""
    changed = []
    for name in ("image_processor", "video_processor"):
        part = getattr(processor, name, None)
        size = getattr(part, "size", None)
        if part is not None and size is not None and {"shortest_edge", "longest_edge"} <= set(given(size)):
            changed.append((part, size))
            part.size = type(size)(**{**given(size), "shortest_edge": 1})
    try:
        yield
    finally:
        for part, size in changed:
            part.size = size


def given(size: Any) -> dict[str, int]:
    """The entries of a processor's size that are not null."""
    return {name: value for name, value in dict(size).items() if value is not None}
