"""Which part of a picture a processor shows, worked out by hand; and what is refused rather than drawn wrong."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tokenprune.adapters.placements import Frames, Whole
from tokenprune.adapters.views import WHOLE, PlacedItem
from tokenprune.errors import SampleError, UnsupportedFeatureError, UnsupportedModelError
from tokenprune.pictures.crop import seen_parts
from tokenprune.pictures.place import views_of

SQUARE = {"height": 32, "width": 32}


def processor(modality: str = "image", **settings: Any) -> Any:
    return SimpleNamespace(**{f"{modality}_processor": SimpleNamespace(**settings)})


def box(picture: tuple[int, int], **settings: Any) -> Any:
    (part,) = seen_parts(processor(do_resize=True, **settings), picture, "image")
    return pytest.approx(part.box)


def test_crops_and_padding_by_hand() -> None:
    shortest: Mapping[str, Any] = {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": SQUARE}
    assert box((64, 32), **shortest) == (0.25, 0, 0.75, 1)
    assert box((100, 400), **shortest) == (0, 0.375, 1, 0.625)
    assert box((32, 32), **shortest) == WHOLE
    as_object = {**shortest, "crop_size": SimpleNamespace(height=16, width=24)}
    assert box((32, 32), **as_object) == (1 / 8, 1 / 4, 7 / 8, 3 / 4)
    assert box((50, 60), size=SQUARE) == WHOLE
    assert box((50, 60), size={"longest_edge": 30}) == WHOLE
    # 32 x 16 resized, 8 rows of padding at the bottom
    padded = {"do_pad": True, "pad_size": {"height": 24, "width": 32}}
    assert box((50, 60), size={"height": 16, "width": 32}, **padded) == (0, 0, 1, 1.5)


def test_an_image_processor_alone_crops_as_well() -> None:
    """Whoever gives ``processor.image_processor`` gets no patches at the wrong place."""
    alone = processor(size={"shortest_edge": 32}, do_resize=True, do_center_crop=True, crop_size=SQUARE).image_processor
    assert seen_parts(alone, (64, 32), "image")[0].box == (0.25, 0, 0.75, 1)


def test_without_a_resize_the_crop_is_in_pixels_of_the_picture() -> None:
    settings = {"do_resize": False, "do_center_crop": True, "crop_size": SQUARE}
    (part,) = seen_parts(processor(**settings), (128, 64), "image")
    assert part.box == pytest.approx((0.375, 0.25, 0.625, 0.75))


def test_videos_have_settings_of_their_own() -> None:
    both = processor(size=SQUARE, do_resize=True)
    both.video_processor = SimpleNamespace(
        size={"shortest_edge": 32}, crop_size=SQUARE, do_resize=True, do_center_crop=True
    )
    assert seen_parts(both, (64, 32), "image")[0].box == WHOLE
    assert seen_parts(both, (64, 32), "video")[0].box == (0.25, 0, 0.75, 1)


def test_settings_of_the_whole_processor_win() -> None:
    """As they do in every call: those on the class, and before it those of the type of its keyword arguments."""
    settings = {"size": {"shortest_edge": 32}, "crop_size": SQUARE, "do_resize": True, "do_center_crop": True}
    subject = processor(**settings)
    subject.images_kwargs = {"do_center_crop": False}
    assert seen_parts(subject, (64, 32), "image")[0].box == WHOLE
    older = processor(**settings)
    older.valid_processor_kwargs = SimpleNamespace(_defaults={"images_kwargs": {"do_center_crop": False}})
    assert seen_parts(older, (64, 32), "image")[0].box == WHOLE


@pytest.mark.parametrize("nobody", [None, SimpleNamespace(), SimpleNamespace(image_processor=None)])
def test_pictures_without_a_processor_are_whole(nobody: Any) -> None:
    assert [part.box for part in seen_parts(nobody, (10, 20), "image")] == [WHOLE]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"do_align_long_axis": True}, "do_align_long_axis=True"),
        ({"size": {"longest_edge": 30}, "do_resize": True, "do_center_crop": True, "crop_size": SQUARE}, "size="),
        ({"size": SQUARE, "do_resize": True, "do_center_crop": True, "crop_size": None}, "crop_size=None"),
        ({"size": SQUARE, "do_resize": True, "do_pad": True}, "pad_size=None"),
        ({"patch_size": 14, "do_resize": False}, "do_resize=False"),
        ({"patch_size": 14, "do_resize": True, "do_center_crop": True}, "do_center_crop=True"),
        ({"image_grid_pinpoints": [], "size": {"shortest_edge": 40}, "crop_size": SQUARE}, "crop_size="),
        (
            {
                "image_grid_pinpoints": [],
                "size": {"shortest_edge": 32},
                "crop_size": {"height": 32, "width": 16},
                "do_center_crop": True,
            },
            "crop_size=",
        ),
    ],
)
def test_what_is_not_understood_is_refused(settings: Mapping[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedFeatureError, match=f"SimpleNamespace has {named}"):
        seen_parts(processor(**settings), (64, 48), "image")


def test_frames_that_count_as_images_are_not_cut_either() -> None:
    """InternVL and SmolVLM: nothing tells an image from a frame of a video, which has settings of its own."""
    subject = processor(crop_to_patches=True)
    assert seen_parts(subject, (64, 48), "image")[0].box == WHOLE
    subject.video_processor = SimpleNamespace(do_center_crop=None)
    assert seen_parts(subject, (64, 48), "image")[0].box == WHOLE
    subject.video_processor.do_center_crop = True
    with pytest.raises(UnsupportedFeatureError, match="do_center_crop=True"):
        seen_parts(subject, (64, 48), "image")


# ---- numbers of pictures ---


def item(start: int, count: int, placement: Any, modality: Any = "image") -> PlacedItem:
    """`count` frames of one row of two tokens."""
    coordinates = torch.tensor([[frame, 0, column] for frame in range(count) for column in range(2)])
    return PlacedItem(modality, torch.arange(start, start + 2 * count), coordinates, placement)


def test_images_and_videos_are_numbered_in_the_order_of_the_prompt() -> None:
    items = [item(3, 1, Whole()), item(9, 3, Frames(2), "video"), item(20, 1, Whole())]
    views, cells = views_of(items, [(10, 10)] * 8, None)
    assert [view.picture for view in views] == [0, 1, 3, 5, 7]
    assert cells.tolist() == [[view, 0, column] for view in range(5) for column in range(2)]
    views, _ = views_of(items, [(10, 10)] * 7, None)
    assert [view.picture for view in views] == [0, 1, 3, 5, 6]


def test_separators_are_on_no_picture() -> None:
    coordinates = torch.tensor([[0, 0, 0], [-1, -1, -1], [0, 1, 0]])
    first = item(0, 1, Whole())
    views, cells = views_of([first, PlacedItem("image", torch.arange(5, 8), coordinates, Whole())], [(9, 9)] * 2, None)
    assert cells.tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [-1, -1, -1], [1, 1, 0]]
    assert [(view.rows, view.columns) for view in views] == [(1, 2), (2, 1)]


def test_a_wrong_number_of_pictures() -> None:
    items = [item(0, 1, Whole()), item(4, 1, Whole()), item(9, 4, Frames(), "video")]
    for count in (0, 5, 7):
        with pytest.raises(SampleError, match=f"2 images and 1 videos, which take 6 pictures, but {count} were given"):
            views_of(items, [(8, 8)] * count, None)
    with pytest.raises(SampleError, match="shows no images, which take 0 pictures, but 1 were given"):
        views_of([], [(8, 8)], None)
    views, cells = views_of([], [], None)
    assert views == ()
    assert cells.shape == (0, 3)


def test_crops_that_the_prompt_does_not_show() -> None:
    scans = processor(
        do_pan_and_scan=True,
        pan_and_scan_min_crop_size=10,
        pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )
    items = [item(4 * number, 1, Whole()) for number in range(3)]
    assert [view.picture for view in views_of(items, [(100, 50)], scans)[0]] == [0, 0, 0]
    assert [view.title for view in views_of(items, [(100, 50)], scans)[0]] == ["overview", "crops", "crops"]
    with pytest.raises(SampleError, match="cuts 1 crops from picture 0 that the prompt does not show"):
        views_of(items[:2], [(100, 50)], scans)
    with pytest.raises(SampleError, match="3 images, which take 1 pictures, but 2 were given"):
        views_of(items, [(100, 50), (50, 50)], scans)


def test_tokens_that_are_nowhere() -> None:
    unknown = PlacedItem("image", torch.arange(4), None, Whole())
    with pytest.raises(UnsupportedModelError, match="tokens of image 1 cannot be told from this call"):
        views_of([item(9, 1, Whole()), unknown], [(8, 8)] * 2, None)
