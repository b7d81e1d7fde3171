"""Which part of a user's picture a model is shown, from the settings of its processor."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from tokenprune.adapters.modalities import Modality
from tokenprune.adapters.placements import padded_square
from tokenprune.adapters.views import WHOLE, Box
from tokenprune.errors import UnsupportedFeatureError

#: Settings of processors that change a picture in ways that are not known here.
UNKNOWN = ("do_align_long_axis", "do_crop_margin", "do_thumbnail")


@dataclass(frozen=True)
class Part:
    """A part of a picture that a model is shown as one image.

    Attributes:
        box: The part, as shares of the picture; where the processor adds padding, it reaches beyond the picture.
        title: What the part is, where a picture has several; else empty.
    """

    box: Box
    title: str = ""


@dataclass(frozen=True)
class Canvas:
    """A picture on its way through a processor.

    Attributes:
        width: Width in pixels, as it is now.
        height: Height in pixels, as it is now.
        box: What it shows, as shares of the picture in the beginning.
    """

    width: int
    height: int
    box: Box = WHOLE

    def resized(self, width: int, height: int) -> Canvas:
        """Stretched to a size in pixels."""
        return replace(self, width=width, height=height)

    def cut(self, left: int, top: int, width: int, height: int) -> Canvas:
        """A rectangle of it in pixels; what lies outside is padding."""
        shares = (left / self.width, top / self.height, (left + width) / self.width, (top + height) / self.height)
        return Canvas(width, height, part_of(self.box, shares))

    def cropped(self, width: int, height: int) -> Canvas:
        """The middle of it; padding where it is smaller."""
        return self.cut((self.width - width) // 2, (self.height - height) // 2, width, height)


def part_of(outer: Box, inner: Box) -> Box:
    """A box given as shares of another box, as shares of what the other is given in."""
    left, top, right, bottom = outer
    width, height = right - left, bottom - top
    return (left + inner[0] * width, top + inner[1] * height, left + inner[2] * width, top + inner[3] * height)


def seen_parts(processor: Any, size: tuple[int, int], modality: Modality) -> list[Part]:
    """The images that a processor makes of one picture, in their order: one, or more with Gemma 3's pan and scan.

    The tiles that a family makes of an image are not told apart here: its adapter knows them.

    Args:
        processor: The processor of images and text. One without an ``image_processor`` (or a ``video_processor``, for
            videos) is taken to show pictures as they are, stretched at most; so is None.
        size: Width and height of the picture, or of a frame of the video, in pixels.
        modality: ``image`` or ``video``.

    Raises:
        UnsupportedFeatureError: The processor changes pictures in a way that is not known here.
    """
    settings = getattr(processor, f"{modality}_processor", None)
    if settings is None:
        return [Part(WHOLE)]
    name = type(settings).__name__
    for setting in UNKNOWN:
        if getattr(settings, setting, None):
            raise unknown(name, setting)
    if hasattr(settings, "image_grid_pinpoints"):
        check_tiles(settings, name)
        return [Part(WHOLE)]
    if getattr(settings, "do_pan_and_scan", None):
        return pan_and_scan(settings, size)
    if hasattr(settings, "patch_size"):  # Pixtral, Qwen-VL: whole patches, of the stretched picture
        for setting, wrong in (("do_resize", False), ("do_center_crop", True)):
            if bool(getattr(settings, setting, not wrong)) == wrong:
                raise unknown(name, setting, wrong)
        return [Part(WHOLE)]
    if hasattr(settings, "max_image_size") or hasattr(settings, "crop_to_patches"):  # stretched to whole tiles
        return [Part(WHOLE)]
    return [Part(seen_box(settings, name, size))]


def seen_box(settings: Any, name: str, size: tuple[int, int]) -> Box:
    """What a processor shows that pads, resizes and crops, in the order that transformers' own have.

    Args:
        settings: The image or video processor.
        name: Its name, for errors.
        size: Width and height of the picture in pixels.

    Raises:
        UnsupportedFeatureError: One of the steps is not known here.
    """
    squares = hasattr(settings, "pad_to_square")  # LLaVA's own processor pads first
    pads = bool(getattr(settings, "do_pad", None))
    canvas = Canvas(*size)
    if squares and pads:
        side = max(size)
        canvas = Canvas(side, side, padded_square(*size))
    crops = bool(getattr(settings, "do_center_crop", None))
    if getattr(settings, "do_resize", None):
        resized = resized_size(getattr(settings, "size", None), canvas)
        if resized is None:
            if crops or (pads and not squares):
                raise unknown(name, "size", getattr(settings, "size", None))
        else:
            canvas = canvas.resized(*resized)
    if crops:
        canvas = canvas.cropped(*sides(settings, name, "crop_size"))
    if pads and not squares:  # at the right and at the bottom
        canvas = canvas.cut(0, 0, *sides(settings, name, "pad_size"))
    return canvas.box


def resized_size(size: Any, canvas: Canvas) -> tuple[int, int] | None:
    """Width and height after a resize; None where the setting is of another kind, which stretches a picture at most."""
    shortest, height, width = (entry(size, key) for key in ("shortest_edge", "height", "width"))
    if entry(size, "longest_edge"):
        return None
    if shortest:
        longest = int(shortest * max(canvas.width, canvas.height) / min(canvas.width, canvas.height))
        return (shortest, longest) if canvas.width <= canvas.height else (longest, shortest)
    return (width, height) if width and height else None


def check_tiles(settings: Any, name: str) -> None:
    """Refuse processors of the any-resolution families that crop their overview or their tiles.

    Raises:
        UnsupportedFeatureError: The sides of overview, tiles and crops differ.
    """
    size, crop = getattr(settings, "size", None), getattr(settings, "crop_size", None)
    overview = entry(size, "height") or entry(size, "shortest_edge")
    tile = entry(crop, "height") or overview
    crops = getattr(settings, "do_center_crop", None)
    if tile != overview or (crops and (entry(crop, "width") or tile) != tile):
        raise unknown(name, "crop_size", crop)


def pan_and_scan(settings: Any, size: tuple[int, int]) -> list[Part]:
    """Gemma 3: a long picture is shown whole, and then in equal crops along its longer side.

    Args:
        settings: The image processor.
        size: Width and height of the picture in pixels.
    """
    smallest = int(settings.pan_and_scan_min_crop_size)
    long, short = max(size), min(size)
    if long / short < settings.pan_and_scan_min_ratio_to_activate:
        return [Part(WHOLE)]
    count = min(math.floor(long / smallest), math.floor(long / short + 0.5))
    count = min(int(settings.pan_and_scan_max_num_crops), max(2, count))
    step = math.ceil(long / count)
    if min(step, short) < smallest:
        return [Part(WHOLE)]
    cuts = [(step * number / long, min(step * (number + 1), long) / long) for number in range(count)]
    wide = size[0] >= size[1]
    boxes: list[Box] = [(start, 0.0, end, 1.0) if wide else (0.0, start, 1.0, end) for start, end in cuts]
    return [Part(WHOLE, "overview"), *(Part(box, "crops") for box in boxes)]


def sides(settings: Any, name: str, setting: str) -> tuple[int, int]:
    """Width and height that a setting gives.

    Raises:
        UnsupportedFeatureError: It gives none.
    """
    value = getattr(settings, setting, None)
    width, height = entry(value, "width"), entry(value, "height")
    if not (width and height):
        raise unknown(name, setting, value)
    return width, height


def entry(size: Any, key: str) -> int | None:
    """An entry of a size, which is a mapping or an object with attributes; None where it has none."""
    value = size.get(key) if isinstance(size, dict) else getattr(size, key, None)
    return None if value is None else int(value)


def unknown(name: str, setting: str, value: Any = True) -> UnsupportedFeatureError:
    """The error for a processor that is not understood."""
    return UnsupportedFeatureError(
        f"{name} has {setting}={value}: which part of a picture the model sees then is not known",
        "change this setting of the processor",
    )
