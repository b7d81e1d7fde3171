"""Videos: which frames are taken, when they are shown, which way is up, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.datasets.test_media import video
from tokenprune.datasets.media import source
from tokenprune.datasets.video import evenly, read_video
from tokenprune.errors import SampleError


def read(path: Path, count: int) -> Any:
    return read_video(source(path.name, path.parent, "q"), count, "q, line 7")


@pytest.mark.parametrize(("count", "chosen"), [(1, [0]), (2, [0, 8]), (3, [0, 4, 8]), (20, list(range(9)))])
def test_frames_at_even_distances(tmp_path: Path, count: int, chosen: list[int]) -> None:
    item = source("v.mp4", video(tmp_path / "v.mp4", 9).parent, "")
    frames, times, duration = read_video(item, count, "")
    assert frames.shape == (len(chosen), 16, 32, 3)
    assert frames.dtype == np.uint8
    assert np.abs(frames.mean(axis=(1, 2, 3)) - 10 * np.array(chosen)).max() < 4
    assert times == pytest.approx([place / 10 for place in chosen])
    assert duration == pytest.approx(0.9)
    data = source((tmp_path / "v.mp4").read_bytes(), tmp_path, "")
    assert np.array_equal(read_video(data, count, "")[0], frames)


def test_unreadable_videos(tmp_path: Path) -> None:
    data = video(tmp_path / "v.mp4", 9).read_bytes()
    for broken in (data[:200], b"", b"no video"):
        with pytest.raises(SampleError, match=r"q, line 7: the video 'sha256:.*' cannot be read \(.+\); replace"):
            read_video(source(broken, tmp_path, ""), 4, "q, line 7")


def written(path: Path, codec: str, stamps: list[int], rotation: int = 0, size: tuple[int, int] = (32, 16)) -> Path:
    """Frame i is gray, ``10 * i`` bright, and shown at ``stamps[i]`` tenths of a second; its upper left is white."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10)
        (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for index, stamp in enumerate(stamps):
            pixels = np.full((size[1], size[0], 3), 10 * index, dtype=np.uint8)
            pixels[:8, :8] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.each("name")
@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("v.mp4", "libx264"),  # frames are stored in another order than they are shown
        ("v.mkv", "libx264"),
        ("v.avi", "libx264"),  # with wrong times of its packets
        ("v.webm", "libvpx-vp9"),
        ("v.ts", "libx264"),  # times do not start at 0
        ("v.avi", "mpeg4"),
    ],
)
def test_containers(tmp_path: Path, name: str, codec: str) -> None:
    frames, times, duration = read(written(tmp_path / name, codec, list(range(20))), 4)
    assert times == pytest.approx([0, 0.6, 1.3, 1.9], abs=2e-3)
    assert duration == pytest.approx(2, abs=2e-3)
    assert frames[:, 8:, 16:].mean((1, 2, 3)) == pytest.approx([0, 60, 130, 190], abs=8)


def test_frames_that_are_not_equally_long(tmp_path: Path) -> None:
    """A recording of a screen: the distances are even in time, and every frame has its own time."""
    path = written(tmp_path / "v.mp4", "mpeg4", [0, 1, 2, 3, 40, 100])
    frames, times, duration = read(path, 3)
    assert times == pytest.approx([0, 4, 10])
    assert frames[:, 8:, 16:].mean((1, 2, 3)) == pytest.approx([0, 40, 50], abs=4)
    assert duration == pytest.approx(10.1)
    assert read(path, 6)[1] == pytest.approx([0, 0.1, 0.2, 0.3, 4, 10]), "each frame once"


@pytest.mark.parametrize(
    ("stamps", "count", "places"),
    [
        ([0, 1, 2, 3], 8, [0, 1, 2, 3]),
        ([0, 1, 2, 3, 4, 5], 1, [0]),
        ([0, 1, 2, 3, 4, 5, 6], 3, [0, 3, 6]),
        ([0, 1, 2, 3, 100], 4, [0, 2, 3, 4]),  # three places lie nearest to the last two frames
        ([0, 97, 98, 99, 100], 4, [0, 1, 2, 4]),
        ([5], 4, [0]),
    ],
)
def test_even_distances(stamps: list[int], count: int, places: list[int]) -> None:
    assert evenly(stamps, count) == places


@pytest.mark.parametrize(("rotation", "white"), [(0, (0, 0)), (90, (-1, 0)), (-90, (0, -1)), (180, (-1, -1))])
def test_a_phone_that_was_held_upright(tmp_path: Path, rotation: int, white: tuple[int, int]) -> None:
    """The file says by how much players turn the picture, against the clock."""
    frames, _, _ = read(written(tmp_path / "v.mp4", "mpeg4", [0, 1], rotation), 2)
    assert frames.shape == ((2, 16, 32, 3) if rotation in (0, 180) else (2, 32, 16, 3))
    corners = {(y, x): frames[0, y, x].mean() for y in (0, -1) for x in (0, -1)}
    assert max(corners, key=corners.__getitem__) == white


def test_one_frame(tmp_path: Path) -> None:
    frames, times, duration = read(video(tmp_path / "v.mp4", 1), 8)
    assert (len(frames), times, duration) == (1, (0.0,), pytest.approx(0.1))


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_sound_alone(tmp_path: Path) -> None:
    with pytest.raises(
        SampleError, match=r"q, line 7: the video 'v.mp4' cannot be read \(it has no video stream, only"
    ):
        read(sound(tmp_path / "v.mp4"), 4)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_video_that_was_cut_short(tmp_path: Path, share: float) -> None:
    """A download that stopped: its index, at the start, names all frames."""
    path = tmp_path / "v.mp4"
    noise = np.random.default_rng(0)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(20):
            pixels = noise.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SampleError, match=r"the file is cut short: it ends within a frame\); replace the file"):
        read(path, 4)
