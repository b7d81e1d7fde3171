"""Frames of a video file, through PyAV."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from tokenprune.core.optional import optional
from tokenprune.errors import SampleError
from tokenprune.records.images import Source


def read_video(item: Source, count: int, where: str) -> tuple[NDArray[np.uint8], float]:
    """Frames at even distances over a video, with its first and its last one.

    The video is read twice: to count its frames, which no container states reliably, and to decode them. Only the
    chosen frames are held.

    Args:
        item: The video.
        count: How many frames; all of them if the video has fewer.
        where: The row, for messages.

    Returns:
        uint8 array ``[frames, height, width, 3]``, RGB, and how many of these frames a second has.

    Raises:
        SampleError: The video is broken, cut short, or of an unknown format.
    """
    av = optional("av", "a video")
    try:
        with av.open(item.open()) as container:
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            total = sum(packet.size > 0 for packet in container.demux(stream))
        wanted = {int(index) for index in np.linspace(0, total - 1, min(count, total)).round()}
        with av.open(item.open()) as container:
            frames = [
                frame.to_ndarray(format="rgb24")
                for index, frame in enumerate(container.decode(video=0))
                if index in wanted
            ]
        if not wanted or len(frames) < len(wanted):
            raise ValueError(f"{len(frames)} of {len(wanted)} chosen frames can be decoded")
    except Exception as error:  # av.error.FFmpegError, IndexError without a video stream, the ValueError above
        reason = " ".join(str(error).split()) or type(error).__name__
        what = f"{where}: the video {item.key!r} cannot be read ({reason})"
        raise SampleError(what, "replace the file, or remove the line") from error
    return np.stack(frames), float(len(frames) * rate / total)
