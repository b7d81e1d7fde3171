"""What a row may name as a picture or video, and what is refused."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tokenprune.datasets.media import source
from tokenprune.datasets.picture import read_image
from tokenprune.errors import SampleError


def picture(path: Path, size: tuple[int, int] = (40, 20)) -> bytes:
    Image.effect_noise(size, 50).save(path)
    return path.read_bytes()


def video(path: Path, frames: int, fps: int = 10) -> Path:
    """Frame i is gray, ``10 * i`` bright."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for index in range(frames):
            pixels = np.full((16, 32, 3), 10 * index, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_paths_and_bytes(tmp_path: Path) -> None:
    data = picture(tmp_path / "a.png")
    path = source("./a.png", tmp_path, "q, line 1")
    assert path.key == "a.png", "as written in the row: the same on every machine"
    assert source(str(tmp_path / "a.png"), Path("elsewhere"), "").path == tmp_path / "a.png"
    same = source(data, tmp_path, "")
    assert same == source({"bytes": data, "path": "gone.png"}, tmp_path, "")
    assert same.key.startswith("sha256:")
    assert source({"bytes": None, "path": "a.png"}, tmp_path, "") == path
    assert np.array_equal(np.asarray(read_image(path, "")), np.asarray(read_image(same, "")))
    assert read_image(path, "").mode == "RGB"


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("b.png", r"^q, line 7: the file 'b.png' does not exist \(.*b.png\); correct the path, or set `images`"),
        (".", "q, line 7: the file '.' is a folder"),
        ("  ", "q, line 7: the path is empty; write the path of a file"),
        ("a\0\n.png", r"q, line 7: the file 'a\\x00\\n.png' does not exist \(.*a\\x00\\n.png\); correct"),
        ("https://example.org/a.png", "q, line 7: 'https://example.org/a.png' is a URL, .*; download it first"),
        ("s3://bucket/a.png", "is a URL"),
        ("data:image/png,%89PNG", "q, line 7: 'data:image/png,%89PNG' is not base64; write data:image/png;base64,..."),
        (5, "q, line 7: an image or video cannot be read from the type int: 5; write the path"),
        ({"bytes": None}, "neither bytes nor a path"),
    ],
)
def test_what_no_image_can_be_read_from(tmp_path: Path, value: object, what: str) -> None:
    with pytest.raises(SampleError, match=what):
        source(value, tmp_path, "q, line 7")


ENCODINGS: dict[str, Callable[[str], str]] = {
    "alone": lambda code: code,
    "on lines": lambda code: "\n".join(code[start : start + 76] for start in range(0, len(code), 76)),
    "for addresses": lambda code: code.translate(str.maketrans("+/", "-_")),
    "without padding": lambda code: code.rstrip("="),
    "as an address": lambda code: f"data:image/png;base64,{code}",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp", "tiff"])
def test_a_picture_as_text(tmp_path: Path, suffix: str, encoding: str) -> None:
    """It is the same source as its bytes; a JPEG begins with /9j/ in base64, like a path."""
    data = picture(tmp_path / f"a.{suffix}")
    value = ENCODINGS[encoding](base64.b64encode(data).decode())
    assert source(value, tmp_path, "") == source(data, tmp_path, "")
    assert read_image(source(value, tmp_path, ""), "").size == (40, 20)


def test_a_text_that_was_cut_off(tmp_path: Path) -> None:
    """Messages show the first characters of a text, and no more."""
    code = base64.b64encode(picture(tmp_path / "a.png", (200, 100))).decode()
    with pytest.raises(
        SampleError, match=r"a file in base64 \(\d+ characters, '.{1,80}\.\.\.\) cannot be decoded"
    ) as caught:
        source(code[:-3] + "#", tmp_path, "q, line 7")
    assert len(str(caught.value)) < 300
    with pytest.raises(SampleError, match="cannot be read") as caught:
        read_image(source(code[: len(code) // 2 // 4 * 4], tmp_path, ""), "q, line 7")
    assert len(str(caught.value)) < 300
    for text in ("no picture " * 10_000, "QUJD" * 10_000):
        with pytest.raises(SampleError, match=r"the file '.{1,80}\.\.\. does not exist") as caught:
            source(text, tmp_path, "q, line 7")
        assert len(str(caught.value)) < 500


def test_a_file_comes_before_base64(tmp_path: Path) -> None:
    """A name that looks like the beginning of a picture is a name if there is such a file."""
    name = base64.b64encode(picture(tmp_path / "a.png")).decode()[:40].replace("/", "-")
    (tmp_path / name).write_bytes((tmp_path / "a.png").read_bytes())
    assert source(name, tmp_path, "").path == tmp_path / name
