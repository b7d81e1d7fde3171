"""The part of a user's picture that a model is shown, from the settings of its processor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenprune.adapters.modalities import Modality
from tokenprune.adapters.placements import padded_square
from tokenprune.adapters.views import WHOLE, Box, part_of
from tokenprune.errors import UnsupportedFeatureError

#: Settings of processors that change a picture in ways that are not known here.
UNKNOWN = ("do_align_long_axis", "do_crop_margin", "do_thumbnail")


@dataclass(frozen=True)
class Part:
    """A part of a picture that a model is shown as one image.

    Attributes:
        box: The part, as shares of the picture; where the processor adds padding, it reaches beyond the picture.
        title: A name, where a picture has several parts; else empty.
    """

    box: Box
    title: str = ""


@dataclass(frozen=True)
class Processed:
    """A picture on its way through a processor.

    Attributes:
        width: Width in pixels, after the last step.
        height: Height in pixels, after the last step.
        box: The part of the user's picture that it shows, as shares of that picture.
    """

    width: int
    height: int
    box: Box = WHOLE

    def cut(self, left: int, top: int, width: int, height: int) -> Processed:
        """A rectangle of it in pixels; padding where the rectangle lies outside."""
        shares = (left / self.width, top / self.height, (left + width) / self.width, (top + height) / self.height)
        return Processed(width, height, part_of(self.box, shares))


@dataclass(frozen=True)
class Settings:
    """Settings of an image or video processor.

    Attributes:
        owner: The image or video processor.
        defaults: Settings of the processor that owns it, which replace its own at every call.
    """

    owner: Any
    defaults: Mapping[str, Any]

    @classmethod
    def of(cls, processor: Any, modality: Modality) -> Settings:
        """The settings that a processor uses for images or for videos."""
        name = f"{modality}s_kwargs"
        older = getattr(getattr(processor, "valid_processor_kwargs", None), "_defaults", {})  # transformers 5.17
        defaults = {**(getattr(processor, name, None) or {}), **older.get(name, {})}
        return cls(owner_of(processor, modality), defaults)

    def has(self, name: str) -> bool:
        """Whether the image or video processor has an attribute."""
        return hasattr(self.owner, name)

    def __getitem__(self, name: str) -> Any:
        """The value of a setting; None where there is none."""
        return self.defaults.get(name, getattr(self.owner, name, None))

    def sides(self, name: str) -> tuple[int, int]:
        """Width and height that a setting gives.

        Raises:
            UnsupportedFeatureError: It gives none.
        """
        width, height = (entry(self[name], side) for side in ("width", "height"))
        if not (width and height):
            raise self.unknown(name)
        return width, height

    def refuse(self, *names: str) -> None:
        """Raise :meth:`unknown` for the first of some settings that is switched on."""
        for name in names:
            if self[name]:
                raise self.unknown(name)

    def unknown(self, name: str) -> UnsupportedFeatureError:
        """The error for a setting that is not understood."""
        return UnsupportedFeatureError(
            f"{type(self.owner).__name__} has {name}={self[name]}: which part of a picture the model sees then is not"
            " known",
            "change this setting of the processor",
        )


def owner_of(processor: Any, modality: Modality) -> Any:
    """The image or video processor of a processor, or itself where it is one; None where it has none."""
    found = getattr(processor, f"{modality}_processor", None)
    return processor if found is None and hasattr(processor, "do_resize") else found


def seen_parts(processor: Any, size: tuple[int, int], modality: Modality) -> list[Part]:
    """The images that a processor makes of one picture, in their order: one, or more with Gemma 3's pan and scan.

    The tiles that a family makes of an image are not told apart here: its adapter knows them.

    Args:
        processor: The processor of images and text, or its image or video processor. One that has neither an
            ``image_processor`` (or a ``video_processor``, for videos) nor ``do_resize`` is taken to show pictures as
            they are, stretched at most; so is None.
        size: Width and height of the picture, or of a frame of the video, in pixels.
        modality: ``image`` or ``video``.

    Raises:
        UnsupportedFeatureError: The processor changes pictures in a way that is not known here.
    """
    if owner_of(processor, modality) is None:
        return [Part(WHOLE)]
    settings = Settings.of(processor, modality)
    settings.refuse(*UNKNOWN)
    if settings.has("image_grid_pinpoints"):
        check_tiles(settings)
        return [Part(WHOLE)]
    if settings["do_pan_and_scan"]:
        return pan_and_scan(settings, size)
    if settings.has("patch_size"):  # Pixtral, Qwen-VL: whole patches, of the stretched picture
        if not settings["do_resize"]:
            raise settings.unknown("do_resize")
        settings.refuse("do_center_crop")
        return [Part(WHOLE)]
    if settings.has("max_image_size") or settings.has("crop_to_patches"):  # stretched to whole tiles
        if getattr(processor, "video_processor", None) is not None:  # the frames of a video count as images
            Settings.of(processor, "video").refuse("do_center_crop")
        return [Part(WHOLE)]
    return [Part(seen_box(settings, size))]


def seen_box(settings: Settings, size: tuple[int, int]) -> Box:
    """The part that a processor shows which pads, resizes and crops, in the order that transformers' own have.

    Args:
        settings: The settings of the image or video processor.
        size: Width and height of the picture in pixels.

    Raises:
        UnsupportedFeatureError: One of the steps is not known here.
    """
    squares = settings.has("pad_to_square")  # LLaVA's own processor pads first
    pads, crops = bool(settings["do_pad"]), bool(settings["do_center_crop"])
    picture = Processed(*size)
    if squares and pads:
        picture = Processed(max(size), max(size), padded_square(*size))
    if settings["do_resize"]:
        resized = resized_size(settings["size"], picture.width, picture.height)
        if resized is not None:
            picture = Processed(*resized, picture.box)
        elif crops or (pads and not squares):
            raise settings.unknown("size")
    if crops:  # the middle; padding where the picture is smaller
        width, height = settings.sides("crop_size")
        picture = picture.cut((picture.width - width) // 2, (picture.height - height) // 2, width, height)
    if pads and not squares:  # at the right and at the bottom
        picture = picture.cut(0, 0, *settings.sides("pad_size"))
    return picture.box


def resized_size(size: Any, width: int, height: int) -> tuple[int, int] | None:
    """Width and height after a resize; None where the setting is of another kind, which stretches a picture at most."""
    if entry(size, "longest_edge"):
        return None
    shortest = entry(size, "shortest_edge")
    if shortest:
        longest = int(shortest * max(width, height) / min(width, height))
        return (shortest, longest) if width <= height else (longest, shortest)
    sides = entry(size, "width"), entry(size, "height")
    return (sides[0], sides[1]) if sides[0] and sides[1] else None


def check_tiles(settings: Settings) -> None:
    """Refuse processors of the any-resolution families that crop their overview or their tiles.

    Raises:
        UnsupportedFeatureError: The sides of overview, tiles and crops differ.
    """
    size, crop = settings["size"], settings["crop_size"]
    overview = entry(size, "height") or entry(size, "shortest_edge")
    tile = entry(crop, "height") or overview
    if tile != overview or (settings["do_center_crop"] and (entry(crop, "width") or tile) != tile):
        raise settings.unknown("crop_size")


def pan_and_scan(settings: Settings, size: tuple[int, int]) -> list[Part]:
    """Gemma 3: a long picture is shown whole, and then in equal crops along its longer side.

    Args:
        settings: The settings of the image processor.
        size: Width and height of the picture in pixels.
    """
    smallest = int(settings["pan_and_scan_min_crop_size"])
    long, short = max(size), min(size)
    if long / short < settings["pan_and_scan_min_ratio_to_activate"]:
        return [Part(WHOLE)]
    count = min(math.floor(long / smallest), math.floor(long / short + 0.5))
    count = min(int(settings["pan_and_scan_max_num_crops"]), max(2, count))
    step = math.ceil(long / count)
    if min(step, short) < smallest:
        return [Part(WHOLE)]
    cuts = [(step * number / long, min(step * (number + 1), long) / long) for number in range(count)]
    wide = size[0] >= size[1]
    boxes: list[Box] = [(start, 0.0, end, 1.0) if wide else (0.0, start, 1.0, end) for start, end in cuts]
    return [Part(WHOLE, "overview"), *(Part(box, "crops") for box in boxes)]


def entry(size: Any, key: str) -> int | None:
    """An entry of a size, which is a mapping or an object with attributes; None where it has none."""
    value = size.get(key) if isinstance(size, dict) else getattr(size, key, None)
    return None if value is None else int(value)
