"""Pictures as a model is shown them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.datasets.test_media import picture
from tokenprune.datasets.media import source
from tokenprune.datasets.picture import read_image
from tokenprune.errors import SampleError


def read(path: Path) -> Any:
    return np.asarray(read_image(source(path.name, path.parent, ""), ""))


def test_the_camera_was_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(source("a.jpg", tmp_path, ""), "").size == (20, 40)


def test_sixteen_bits_are_not_cut_off(tmp_path: Path) -> None:
    """Pillow alone would show every value above 255 as white."""
    grey = np.array([[0, 255, 256], [32768, 65280, 65535]], dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    shown = np.asarray(read_image(source("deep.png", tmp_path, ""), ""))
    assert shown.tolist() == [[[value >> 8] * 3 for value in row] for row in grey.tolist()]
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "deep.tiff")
    with pytest.raises(SampleError, match=r"'deep.tiff' cannot be read \(a grey picture of 32 bits \(mode F\)\)"):
        read_image(source("deep.tiff", tmp_path, "q, line 1"), "q, line 1")


INK, CLEAR = (0, 0), (0, 1)
"""A black pixel, and a transparent one."""


def transparent(mode: str) -> Image.Image:
    """Black text on nothing: one black pixel and one transparent pixel, whose hidden colour is black, too."""
    both = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    both.putpixel((1, 0), (0, 0, 0, 0))
    if mode == "P":  # a palette with one transparent entry
        made = Image.new("P", (2, 1))
        made.putpalette([0, 0, 0, 0, 0, 0])
        made.putpixel((1, 0), 1)
        made.info["transparency"] = 1
        return made
    if mode == "RGB":  # one colour stands for nothing
        made = Image.new("RGB", (2, 1))
        made.putpixel((1, 0), (0, 0, 1))
        made.info["transparency"] = (0, 0, 1)
        return made
    return both.convert(mode)


STORED = {"png": ("RGBA", "LA", "P", "RGB"), "webp": ("RGBA", "LA", "P"), "tiff": ("RGBA", "LA"), "gif": ("RGBA", "P")}
"""The kinds of transparency that formats store."""


@pytest.mark.parametrize(("suffix", "mode"), [(suffix, mode) for suffix, modes in STORED.items() for mode in modes])
def test_black_text_on_nothing_stays_legible(tmp_path: Path, suffix: str, mode: str) -> None:
    """What is transparent is white, as on a page; it used to be black."""
    path = tmp_path / f"a.{suffix}"
    made = transparent(mode)
    made.save(path, transparency=made.info["transparency"]) if "transparency" in made.info else made.save(path)
    shown = read(path)
    assert shown[INK].tolist() == [0, 0, 0]
    assert shown[CLEAR].tolist() == [255, 255, 255]


def test_half_transparent_pixels_are_mixed_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (1, 1), (0, 100, 200, 51)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png")[0, 0].tolist() == [204, 224, 244]


def test_cmyk(tmp_path: Path) -> None:
    """Pictures for print have colours, not their opposite."""
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = read(tmp_path / "a.jpg")[8, 8]
    assert red > 200 > 60 > max(green, blue)


@pytest.mark.parametrize("suffix", ["gif", "webp", "tiff"])
def test_of_several_pictures_in_a_file_it_is_the_first(tmp_path: Path, suffix: str) -> None:
    pages = [Image.new("RGB", (8, 8), (value, value, value)) for value in (40, 120, 200)]
    options: Any = {"lossless": True} if suffix == "webp" else {}
    pages[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=pages[1:], **options)
    assert read(tmp_path / f"a.{suffix}")[4, 4].tolist() == [40, 40, 40]


def test_unreadable_images(tmp_path: Path) -> None:
    data = picture(tmp_path / "a.png")
    for broken in (data[: len(data) // 2], b"no image", b""):
        with pytest.raises(
            SampleError, match=r"q, line 7: the image 'sha256:.*' cannot be read \(.+\); replace"
        ) as error:
            read_image(source(broken, tmp_path, ""), "q, line 7")
        assert "\n" not in str(error.value)
        assert " at 0x" not in str(error.value), "the same error twice is the same line in skipped.jsonl"
