"""Every visual token lies on the pictures where the model looked to make it: numbered patches, for every family.

The processors of some families need torchvision: `test_torchvision.py` runs this folder's files again in a process with
it. Processors are others there, also those of the families here.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import transformers as tf

from tests.support.checkpoints import FAMILIES, SIDE, usable
from tests.support.painted import painted, plain, visual_states
from tests.support.placing import Setting, check, items_of, made, place
from tests.support.tiny import CASES
from tests.support.tiny.core import IMAGE, spread_weights
from tests.support.tiny.parts import CLIP, text
from tokenprune.pictures.place import views_of

SIZES = {
    "square": (192, 192),
    "wide": (320, 128),
    "tall": (104, 240),
    "odd": (150, 111),
    "half a row": (320, 200),
    "half a column": (200, 320),
}
"""Width and height of pictures. LLaVA-NeXT leaves half a token of padding on two sides of the last two."""


@functools.cache
def setting(name: str) -> Setting:
    """A family; nothing here changes it."""
    return made(name)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", usable())
def test_a_picture(name: str, size: str) -> None:
    check(setting(name), [plain(*SIZES[size])])


@pytest.mark.slow
@pytest.mark.parametrize("name", usable())
def test_several_pictures(name: str) -> None:
    views = check(setting(name), [plain(*SIZES["wide"]), plain(*SIZES["square"]), plain(*SIZES["tall"])], spots=36)
    assert {view.picture for view in views} == {0, 1, 2}


def llava(images: Any) -> Setting:
    """LLaVA with another image processor."""
    processor = FAMILIES["llava"].processor()
    processor.image_processor = images
    return made("llava", processor)


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_of_which_the_middle_is_cut_out(size: str) -> None:
    """As LLaVA-1.5 does it; what is cut off changes nothing."""
    subject = llava(tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIDE))
    width, height = SIZES[size]
    (view,) = check(subject, [plain(width, height)], spots=16)
    left, top, right, bottom = view.box
    assert (right - left) * width == pytest.approx((bottom - top) * height, abs=3)
    outside = [(0, box) for box in ((0, 0, left, 1), (right, 0, 1, 1), (0, 0, 1, top), (0, bottom, 1, 1))]
    copies = [
        painted([plain(width, height)], (picture, shrunk(box)))
        for picture, box in outside
        if box[2] - box[0] > 0.1 and box[3] - box[1] > 0.1
    ]
    assert len(copies) == (0 if width == height else 2)
    changes = visual_states(subject.model, subject.encode([[plain(width, height)], *copies], 0), (IMAGE,)).changes()
    assert not len(changes) or float(changes.max()) == 0.0


def shrunk(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    """The middle of a box: resizing blurs its edges."""
    left, top, right, bottom = box
    x, y = (right - left) / 4, (bottom - top) / 4
    return (left + x, top + y, right - x, bottom - y)


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_padded_by_its_crop(size: str) -> None:
    """The resized picture is smaller than the crop: there is black on all sides."""
    subject = llava(tf.CLIPImageProcessor(size={"height": 16, "width": 24}, crop_size=SIDE))
    (view,) = check(subject, [plain(*SIZES[size])], spots=16, fewest=0.3)
    assert view.box == pytest.approx((-1 / 6, -1 / 2, 7 / 6, 3 / 2))


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_padded_to_a_square(size: str) -> None:
    """As the first LLaVA did it."""
    subject = llava(tf.LlavaImageProcessor(size={"shortest_edge": 32}, crop_size=SIDE, do_pad=True))
    (view,) = check(subject, [plain(*SIZES[size])], spots=16, fewest=0.3)
    assert min(view.box) <= 0
    assert max(view.box) >= 1


def test_vipllava() -> None:
    subject = made("llava", model=CASES["vipllava"].build())
    assert subject.model.config.model_type == "vipllava"
    for size in SIZES.values():
        check(subject, [plain(*size)])


def test_patches_that_leave_out_a_rest() -> None:
    """A tower of 36 pixels with patches of 8, as SigLIP's 384 pixels are no multiple of 14."""
    config = tf.LlavaConfig(
        vision_config={**CLIP, "image_size": 36}, text_config=text(), image_token_id=IMAGE, image_seq_length=16
    )
    model = tf.LlavaForConditionalGeneration(config).eval()
    spread_weights(model, 0)
    processor = FAMILIES["llava"].processor()
    processor.image_processor = tf.CLIPImageProcessor(size={"height": 36, "width": 36}, do_center_crop=False)
    subject = made("llava", processor, model)
    (view,) = check(subject, [plain(180, 180)], spots=16)
    assert view.box == pytest.approx((0, 0, 8 / 9, 8 / 9))


@pytest.mark.parametrize("size", [(260, 100), (100, 340), (192, 192), (200, 130)])
def test_pan_and_scan(size: tuple[int, int]) -> None:
    """Gemma 3 shows a long picture whole, and then in crops: all are the same picture."""
    processor = FAMILIES["gemma3"].processor()
    processor.images_kwargs = {
        "do_pan_and_scan": True,
        "pan_and_scan_min_crop_size": 40,
        "pan_and_scan_max_num_crops": 4,
        "pan_and_scan_min_ratio_to_activate": 1.2,
    }
    subject = made("gemma3", processor)
    views = check(subject, [plain(*size)], spots=32)
    ratio = max(size) / min(size)
    assert len(views) == (1 if ratio < 1.2 else 1 + max(2, int(ratio + 0.5)))
    assert {view.picture for view in views} == {0}
    both = check(subject, [plain(*size), plain(160, 160)], spots=32)
    assert [view.picture for view in both] == [0] * len(views) + [1]


def test_gemma_pools_patches() -> None:
    """Four patches are one token."""
    config = CASES["gemma3"].build().config
    config.vision_config.patch_size = 4
    model = tf.Gemma3ForConditionalGeneration(config).eval()
    spread_weights(model, 0)
    check(made("gemma3", model=model), [plain(*SIZES["wide"])])


@pytest.mark.parametrize("size", SIZES)
def test_idefics_without_tiles(size: str) -> None:
    processor = FAMILIES["idefics3"].processor()
    processor.image_processor.do_image_splitting = False
    (view,) = check(made("idefics3", processor), [plain(*SIZES[size])])
    assert view.title == ""


def test_left_padding_and_other_samples_change_nothing() -> None:
    """The second sample of a batch lies where it lies alone."""
    subject = setting("llava-next")
    first, second = [plain(*SIZES["square"])], [plain(*SIZES["wide"])]
    items = items_of(subject, subject.encode([first, second], 0))
    views, cells = views_of(items[1], [SIZES["wide"]], subject.processor)
    alone, alone_cells = place(subject, second)
    assert views == alone
    assert (cells == alone_cells).all()
