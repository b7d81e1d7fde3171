"""Pictures in whatever form a user has them, as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenprune.errors import ConfigError


def as_picture(picture: Any) -> NDArray[np.uint8]:
    """A picture as uint8 ``[height, width, 3]``.

    Args:
        picture: A Pillow image of any mode, or a uint8 array or tensor ``[height, width, 3]``.

    Raises:
        ConfigError: It is something else.
    """
    if hasattr(picture, "convert"):  # a Pillow image, without importing Pillow
        picture = picture.convert("RGB")
    try:
        array = np.asarray(picture)
    except (TypeError, ValueError):
        array = np.zeros(0)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        what = f"{array.dtype} {list(array.shape)}" if array.ndim else type(picture).__name__
        raise ConfigError(
            f"a picture is {what}", "give Pillow images or uint8 arrays [height, width, 3], e.g. PIL.Image.open(path)"
        )
    return array
