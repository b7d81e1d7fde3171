"""Pictures as a model is shown them: RGB, upright, on white. Pillow reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tokenprune.core.optional import optional
from tokenprune.datasets.media import Source

if TYPE_CHECKING:
    from PIL.Image import Image


#: The key of a picture's ``info`` that says that it had transparent parts.
ON_WHITE = "transparent parts on white"


def read_image(item: Source, where: str) -> Image:
    """Decode a picture: RGB, turned the way that its EXIF orientation says, with white where it is transparent.

    Of several pages, or of an animation, it is the first picture.

    Raises:
        SampleError: It is broken, cut short, or of an unknown format.
    """
    image_module = optional("PIL.Image", "an image")
    try:
        with image_module.open(item.open()) as opened:
            return upright(opened)
    except image_module.UnidentifiedImageError as error:  # its message has the address of the bytes in memory
        raise item.unreadable("image", where, "it is no picture of a known format") from error
    except Exception as error:  # Pillow's decoders raise many kinds: OSError, SyntaxError, ValueError, struct.error ...
        raise item.unreadable("image", where, error) from error


def upright(opened: Image) -> Image:
    """An opened picture as a model is shown it. Pillow decodes it now, and raises what its decoders raise."""
    operations = optional("PIL.ImageOps", "an image")
    return on_white(eight_bits(operations.exif_transpose(opened)))


def is_animation(item: Source) -> bool:
    """Whether a picture that can be read is an animated PNG or WebP, which PyAV cannot read as a video."""
    image_module = optional("PIL.Image", "an image")
    with image_module.open(item.open()) as opened:
        return opened.format in ("PNG", "WEBP") and bool(getattr(opened, "is_animated", False))


def on_white(picture: Image) -> Image:
    """A picture as RGB. Transparent parts become white, like a page: in a mere conversion they often turn black."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    image_module = optional("PIL.Image", "an image")
    page: Image = image_module.new("RGBA", picture.size, "white")
    page.alpha_composite(picture.convert("RGBA"))
    made: Image = page.convert("RGB")
    made.info[ON_WHITE] = True
    return made


def eight_bits(picture: Image) -> Image:
    """A grey picture of 16 bits as one of 8, which Pillow would cut off at 255; other pictures as they are.

    Raises:
        ValueError: The picture has 32 bits per pixel, of which nobody knows which value is white.
    """
    if picture.mode.startswith("I;16"):
        image_module = optional("PIL.Image", "an image")
        made: Image = image_module.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        return made
    if picture.mode in ("I", "F"):
        raise ValueError(f"a grey picture of 32 bits (mode {picture.mode})")
    return picture
