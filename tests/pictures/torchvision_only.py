"""What only processors do that need torchvision; `test_torchvision.py` runs this in a process of its own."""

from __future__ import annotations

from typing import Any

import pytest
import transformers as tf

from tests.adapters.test_adapters import call_of_generate
from tests.pictures.test_placement import SIZES, setting
from tests.support.checkpoints import FAMILIES, SIDE, usable
from tests.support.painted import plain
from tests.support.placing import check, items_of, made
from tests.support.tiny import CASES
from tests.support.tiny.core import IMAGE, TRANSFORMERS, spread_weights
from tests.support.tiny.llava import onevision_model
from tests.support.tiny.parts import PATCHES, text
from tokenprune.errors import SampleError, UnsupportedModelError
from tokenprune.pictures.place import views_of

CLIPS = {"square": (96, 96), "wide": (160, 64)}
FILMED = [name for name in usable() if FAMILIES[name].clip]


@pytest.mark.parametrize("size", CLIPS)
@pytest.mark.parametrize("name", FILMED)
def test_a_video(name: str, size: str) -> None:
    views = check(setting(name), [plain(*CLIPS[size])] * 6, frames=6)
    assert [view.picture for view in views] == (list(range(0, 6, 2)) if "qwen" in name else list(range(6)))


@pytest.mark.parametrize("name", FILMED)
def test_several_videos(name: str) -> None:
    views = check(setting(name), [plain(*CLIPS["wide"])] * 8, frames=4, spots=36)
    assert [view.picture for view in views] == (list(range(0, 8, 2)) if "qwen" in name else list(range(8)))


@pytest.mark.parametrize("name", [name for name in FILMED if "qwen" in name])
def test_a_video_that_ends_with_half_a_frame_of_tokens(name: str) -> None:
    views = check(setting(name), [plain(*CLIPS["square"])] * 5, frames=5)
    assert [view.picture for view in views] == [0, 2, 4]


def test_videos_of_which_one_ends_early() -> None:
    """Two videos that are 11 or 12 frames: nothing tells which of them has 5."""
    subject = setting("qwen2.5-vl")
    items = items_of(subject, subject.encode([[plain(96, 96)] * 12], 6))[0]
    views, _ = views_of(items, [(96, 96)] * 12, subject.processor)
    assert [view.picture for view in views] == [0, 2, 4, 6, 8, 10]
    with pytest.raises(SampleError, match="which of them ends early is not known"):
        views_of(items, [(96, 96)] * 11, subject.processor)
    for count in (9, 13):
        with pytest.raises(SampleError, match=f"2 videos, which take 10 to 12 pictures, but {count} were given"):
            views_of(items, [(96, 96)] * count, subject.processor)


def test_qwen3_vl_moe() -> None:
    subject = made("qwen3-vl", model=CASES["qwen3_vl_moe"].build())
    check(subject, [plain(*SIZES["wide"])])
    check(subject, [plain(*CLIPS["wide"])] * 6, frames=6)


def test_llava_with_pixtral() -> None:
    config = tf.LlavaConfig(
        vision_config={**PATCHES, "model_type": "pixtral", "image_size": 64, "head_dim": 16},
        text_config=text("mistral", head_dim=16, sliding_window=None),
        image_token_id=IMAGE,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    model = tf.LlavaForConditionalGeneration(config).eval()
    spread_weights(model, 0)
    processor = FAMILIES["mistral3"].processor()
    processor.spatial_merge_size = 1
    subject = made("mistral3", processor, model)
    for size in SIZES.values():
        check(subject, [plain(*size)])
    check(subject, [plain(*SIZES["wide"]), plain(*SIZES["tall"])])


def lighton(pixels: dict[str, Any]) -> Any:
    """LightOnOCR, whose images are unbroken runs."""
    family = FAMILIES["mistral3"]
    tokenizer = family.tokenizer()
    names = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
    for name, token in names.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", family.tokens[token])
    images = tf.PixtralImageProcessor(size={"longest_edge": 32}, **pixels)
    processor = tf.LightOnOcrProcessor(
        images, tokenizer, patch_size=4, spatial_merge_size=2, chat_template=family.template
    )
    return made("mistral3", processor, CASES["lighton_ocr"].build())


@pytest.mark.parametrize("patch", [4, 8])
def test_lighton_ocr(patch: int) -> None:
    """Its processor may resize to patches, of which a token is two: a rest at the edges is in no token."""
    subject = lighton({"patch_size": {"height": patch, "width": patch}})
    assert subject.model.config.model_type == "lighton_ocr"
    boxes = []
    for size in SIZES.values():
        (view,) = check(subject, [plain(*size)])
        boxes.append(view.box)
    assert (set(boxes) == {(0.0, 0.0, 1.0, 1.0)}) == (patch == 8)


def test_lighton_ocr_in_generate() -> None:
    """``generate`` passes no sizes of images on: no picture rather than a wrong one."""
    subject = lighton({"patch_size": {"height": 8, "width": 8}})
    if TRANSFORMERS < (5, 23):
        pytest.skip("passes them on")
    call = call_of_generate(subject.model, subject.encode([[plain(64, 64)]], 0), 1)
    items = items_of(subject, call)[0]
    with pytest.raises(UnsupportedModelError, match="image 0 cannot be told from this call"):
        views_of(items, [(64, 64)], subject.processor)


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_a_grid_that_is_scaled_down(size: str, most: int) -> None:
    """OneVision scales large grids down: the strongest change counts, the others are blurred."""
    config = onevision_model().config
    config.vision_aspect_ratio = f"anyres_max_{most}"
    model = tf.LlavaOnevisionForConditionalGeneration(config).eval()
    spread_weights(model, 0)
    processor = FAMILIES["llava-onevision"].processor()
    processor.vision_aspect_ratio = config.vision_aspect_ratio
    check(made("llava-onevision", processor, model), [plain(*SIZES[size])], blurred=True)


@pytest.mark.parametrize("size", [(320, 128), (104, 240), (200, 190), (330, 100), (90, 400), (250, 160), (96, 64)])
def test_many_tiles(size: tuple[int, int]) -> None:
    """InternVL with up to twelve tiles, also where two arrangements are equally near (5 : 4 to 2 : 1 and 1 : 2)."""
    processor = FAMILIES["internvl"].processor()
    processor.image_processor.max_patches = 12
    check(made("internvl", processor), [plain(*size)], spots=60)


@pytest.mark.parametrize(("size", "columns"), [((40, 32), 2), ((35, 28), 1), ((200, 160), 2), ((180, 100), 2)])
def test_two_tiles_beside_or_above_each_other(size: tuple[int, int], columns: int) -> None:
    """5 : 4 is as near to 2 : 1 as to 1 : 2: above half of the tiles' pixels the wider arrangement wins."""
    processor = FAMILIES["internvl"].processor()
    processor.image_processor.min_patches = processor.image_processor.max_patches = 2
    views = check(made("internvl", processor), [plain(*size)], spots=48, blurred=True)
    assert [view.box[0] for view in views] == [0, 0.5 if columns == 2 else 0, 0]


def test_videos_that_are_cut() -> None:
    """Video-LLaVA and LLaVA-NeXT-Video cut the middle out of frames."""
    for name in ("video-llava", "llava-next-video"):
        processor = FAMILIES[name].processor()
        processor.video_processor.size = {"shortest_edge": 32}
        processor.video_processor.crop_size = SIDE
        views = check(made(name, processor), [plain(160, 64)] * 3, frames=3)
        boxes = {view.box for view in views}
        assert len(boxes) == 1, boxes
        assert boxes.pop() == pytest.approx((0.3, 0, 0.7, 1))
