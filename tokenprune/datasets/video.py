"""Videos: frames at even distances in time, each with the time at which it is shown. PyAV reads the files."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenprune.core.optional import optional
from tokenprune.datasets.media import Source

#: The frames uint8 ``[frames, height, width, 3]``, RGB, the time of each and the whole duration in seconds.
FrameArrays = tuple[NDArray[np.uint8], tuple[float, ...], float]


@dataclass(frozen=True)
class Timeline:
    """When the frames of a video file are shown.

    Attributes:
        stamps: The time of each frame in units of the file, in the order of display.
        unit: Seconds of one unit.
        end: When the last frame ends.
        stated: Whether the file states these times; otherwise all frames are equally long.
    """

    stamps: list[int]
    unit: Fraction
    end: int
    stated: bool

    def seconds(self, stamp: int) -> float:
        """The time of a stamp from the first frame on."""
        return float((stamp - self.stamps[0]) * self.unit)


def read_video(item: Source, count: int, where: str) -> FrameArrays:
    """Frames at even distances over a video, with its first and its last one, turned the way that the file says.

    The video is read twice: for the times of its frames, and to decode the chosen ones, which alone are held.

    Args:
        item: The video.
        count: The number of frames; a video with fewer gives all of them.
        where: The row, for messages.

    Raises:
        SampleError: The video is broken, cut short, of an unknown format, or has no frames.
    """
    av = optional("av", "a video")
    try:
        # what a file says of its frames is not always true: then every frame is decoded once for its time
        for decode in (False, True):
            line = timeline(av, item, decode)
            chosen = evenly(line.stamps, count)
            frames = decoded(av, item, line, chosen)
            if len(frames) == len(chosen):
                times = tuple(line.seconds(line.stamps[place]) for place in chosen)
                return np.stack(frames), times, line.seconds(line.end)
        raise ValueError(f"{len(frames)} of {len(chosen)} chosen frames can be decoded")
    except Exception as error:  # av.error.FFmpegError, the ValueErrors here
        raise item.unreadable("video", where, error) from error


def timeline(av: Any, item: Source, decode: bool) -> Timeline:
    """The times of a file's frames.

    Args:
        av: PyAV.
        item: The file.
        decode: Ask the decoded frames; otherwise the packets, which takes no time.

    Raises:
        ValueError: There are no frames.
    """
    with av.open(item.open()) as container:
        stream = video_stream(container)
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        unit = stream.time_base
        parts = container.decode(stream) if decode else shown(container.demux(stream))
        found = [(part.pts, part.duration) for part in parts]
    if not found:
        raise ValueError("it has no frames")
    if not decode and all(stamp is not None for stamp, _ in found):
        found.sort()  # packets are in the order of decoding
    stamps = [stamp for stamp, _ in found]
    if unit is None or None in stamps or any(one >= other for one, other in itertools.pairwise(stamps)):
        return Timeline(list(range(len(found))), 1 / Fraction(rate), len(found), stated=False)
    length = found[-1][1] or max(1, round(1 / (rate * unit)))
    return Timeline(stamps, unit, stamps[-1] + length, stated=True)


def shown(packets: Iterator[Any]) -> Iterator[Any]:
    """The packets with a frame that is shown: none before the place where a cut video starts.

    Raises:
        ValueError: The last packet is not complete.
    """
    packet = None
    for packet in filter(lambda packet: packet.size, packets):
        if not packet.is_discard:
            yield packet
    if packet is not None and packet.is_corrupt:
        raise ValueError("the file is cut short: it ends within a frame")


def video_stream(container: Any) -> Any:
    """The first video stream that is no cover picture.

    Raises:
        ValueError: There is none.
    """
    covers = [stream.index for stream in container.streams.video if "attached_pic" in str(stream.disposition)]
    for stream in container.streams.video:
        if stream.index not in covers:
            return stream
    raise ValueError("it has no video stream, only sound" if container.streams.audio else "it has no video stream")


def evenly(stamps: list[int], count: int) -> list[int]:
    """The places of the frames that are nearest to even distances in time, each frame once.

    Args:
        stamps: The times of all frames, ascending.
        count: The number of frames; all of them if there are fewer.
    """
    count = min(count, len(stamps))
    wanted = np.linspace(stamps[0], stamps[-1], count)
    times, order = np.array(stamps, dtype=np.float64), np.arange(count)
    nearest = np.searchsorted((times[1:] + times[:-1]) / 2, wanted)
    nearest = np.maximum.accumulate(nearest - order) + order  # each later than the one before
    places: list[int] = np.minimum(nearest, len(stamps) - count + order).tolist()
    return places


def decoded(av: Any, item: Source, line: Timeline, chosen: list[int]) -> list[NDArray[np.uint8]]:
    """The chosen frames of a file, as far as they are where the timeline says.

    Raises:
        ValueError: The size changes within the video.
    """
    frames: list[NDArray[np.uint8]] = []
    places = set(chosen)
    with av.open(item.open()) as container:
        for place, frame in enumerate(container.decode(video_stream(container))):
            if place in places:
                if line.stated and frame.pts != line.stamps[place]:
                    break
                frames.append(upright(frame))
            if len(frames) == len(chosen):
                break
    sizes = {frame.shape[1::-1] for frame in frames}
    if len(sizes) > 1:
        raise ValueError(f"its frames have different sizes: {' and '.join(f'{w} x {h}' for w, h in sorted(sizes))}")
    return frames


def upright(frame: Any) -> NDArray[np.uint8]:
    """The pixels of a frame, turned the way that the file says, e.g. for a phone that was held upright."""
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    return np.rot90(pixels, round(frame.rotation / 90))  # both count against the clock
