"""Pictures and videos of a harness are what the task `vqa` shows."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.checkpoints import pictures
from tokenprune.datasets.media import source
from tokenprune.datasets.picture import read_image
from tokenprune.errors import SampleError
from tokenprune.harness.media import picture_of, video_of


def test_a_picture_is_the_same_however_it_is_given(tmp_path: Path) -> None:
    """Half transparent, and turned by its EXIF orientation."""
    picture = pictures()[1].convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(read_image(source(str(tmp_path / "a.png"), Path(), "row 1"), "row 1"))
    data = (tmp_path / "a.png").read_bytes()
    with Image.open(tmp_path / "a.png") as opened:
        for value in (str(tmp_path / "a.png"), data, {"bytes": data, "path": None}, opened):
            assert np.array_equal(np.asarray(picture_of(value, "p")), expected)
    assert expected.shape[:2] == picture.size


def test_a_broken_picture_is_named() -> None:
    whole = io.BytesIO()
    pictures()[0].save(whole, "PNG")
    opened = Image.open(io.BytesIO(whole.getvalue()[:200]))
    for value in (opened, whole.getvalue()[:200], 7):
        with pytest.raises(SampleError, match="document 3"):
            picture_of(value, "document 3")


def test_a_missing_video_is_named() -> None:
    with pytest.raises(
        SampleError, match=r"document 3: the file 'gone.mp4' does not exist .*give the path or the bytes"
    ):
        video_of("gone.mp4", 4, "document 3")
