"""Pictures in whatever form a user has them, as arrays."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenprune.errors import ConfigError


def as_pictures(pictures: Any) -> list[NDArray[np.uint8]]:
    """Pictures as uint8 ``[height, width, 3]`` each.

    Args:
        pictures: A sequence of what :func:`as_picture` takes.

    Raises:
        ConfigError: It is a single picture, or something else.
    """
    if isinstance(pictures, str) or hasattr(pictures, "convert") or getattr(pictures, "ndim", None) in (2, 3):
        raise ConfigError("pictures is a single picture", "give a list: [picture]")
    try:
        items = list(pictures)
    except TypeError:
        raise ConfigError(f"pictures is {type(pictures).__name__}", "give a list of pictures") from None
    return [as_picture(item) for item in items]


def as_picture(picture: Any) -> NDArray[np.uint8]:
    """A picture as uint8 ``[height, width, 3]``.

    Args:
        picture: A Pillow image of any mode, or a uint8 array or tensor ``[height, width, 3]``.

    Raises:
        ConfigError: It is something else, or has more than 8 bits.
    """
    if hasattr(picture, "convert"):  # a Pillow image, without importing Pillow
        if picture.mode.startswith(("I", "F")):
            raise ConfigError(
                f"a picture has the mode {picture.mode!r}, whose brightness has no fixed range",
                "scale it to 8 bits first",
            )
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
