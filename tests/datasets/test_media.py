"""Pictures and videos: what a row may name, and what is refused."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tokenprune.datasets.media import read_image, read_video, source
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


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("b.png", r"^q, line 7: the file 'b.png' does not exist \(.*b.png\); correct the path, or set `images`"),
        (".", "q, line 7: the file '.' is a folder"),
        ("https://example.org/a.png", "q, line 7: 'https://example.org/a.png' is a URL, .*; download it first"),
        ("s3://bucket/a.png", "is a URL"),
        ("data:image/png;base64,iVBOR", "is a URL"),
        (5, "q, line 7: an image or video cannot be read from the type int: 5; write the path"),
        ({"bytes": None}, "neither bytes nor a path"),
    ],
)
def test_what_no_image_can_be_read_from(tmp_path: Path, value: object, what: str) -> None:
    with pytest.raises(SampleError, match=what):
        source(value, tmp_path, "q, line 7")


def test_unreadable_images(tmp_path: Path) -> None:
    data = picture(tmp_path / "a.png")
    for broken in (data[: len(data) // 2], b"no image", b""):
        with pytest.raises(
            SampleError, match=r"q, line 7: the image 'sha256:.*' cannot be read \(.+\); replace"
        ) as error:
            read_image(source(broken, tmp_path, ""), "q, line 7")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("count", "chosen"), [(1, [0]), (2, [0, 8]), (3, [0, 4, 8]), (20, list(range(9)))])
def test_frames_at_even_distances(tmp_path: Path, count: int, chosen: list[int]) -> None:
    item = source("v.mp4", video(tmp_path / "v.mp4", 9).parent, "")
    frames, fps = read_video(item, count, "")
    assert (frames.shape, frames.dtype) == ((len(chosen), 16, 32, 3), np.uint8)
    assert np.abs(frames.mean(axis=(1, 2, 3)) - 10 * np.array(chosen)).max() < 4
    assert fps == pytest.approx(len(chosen) / 0.9)
    data = source((tmp_path / "v.mp4").read_bytes(), tmp_path, "")
    assert np.array_equal(read_video(data, count, "")[0], frames)


def test_unreadable_videos(tmp_path: Path) -> None:
    data = video(tmp_path / "v.mp4", 9).read_bytes()
    for broken in (data[:200], b"", b"no video"):
        with pytest.raises(SampleError, match=r"q, line 7: the video 'sha256:.*' cannot be read \(.+\); replace"):
            read_video(source(broken, tmp_path, ""), 4, "q, line 7")
