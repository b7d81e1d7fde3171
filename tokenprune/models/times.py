"""How a model is told when the frames of its videos are shown.

Most processors of transformers write the times into the prompt (Qwen3-VL, SmolVLM, GLM-4V, Gemma 4 ...): the number of
a frame, divided by the frames per second of the video. Here the number counts milliseconds, so that any time can be
told. Qwen2.5-VL and Qwen Omni get one distance for all frames of a video instead. Other families know no times.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenprune.errors import SampleError
from tokenprune.tasks.base import Sample, Video

#: Frames per second of the video that processors are told of; some take only whole numbers of frames.
RATE = 1000
#: The inputs that hold the seconds from one pair of frames to the next, per video.
DISTANCES = ("second_per_grid_ts", "video_second_per_grid")


def frames_of(video: Video, processor: Any) -> NDArray[np.uint8]:
    """The frames of a video, ``[frames, height, width, 3]``.

    A model that joins the frames in pairs gets the only frame of a video twice: Qwen3-VL takes no single one.
    """
    return video.frames[_places(video, processor)]


def check_lengths(samples: Sequence[Sample], processor: Any, name: str) -> None:
    """Refuse videos of different lengths together where the processor fills them up, as that of SmolVLM does.

    It writes the length of the longest into the prompts of all: "eight frames" before four.

    Args:
        samples: The samples.
        processor: The processor.
        name: The model's name, for the error.

    Raises:
        SampleError: There are different lengths.
    """
    lengths = sorted({len(video.times) for video in _videos(samples)})
    if len(lengths) > 1 and getattr(processor.video_processor, "do_pad", False):
        counts = " and ".join(map(str, lengths))
        what = f"the videos of sample {samples[0].id!r} and its batch have {counts} frames; {name} is told one number"
        raise SampleError(what, "set batch_size to 1; of several videos in a sample take equally many frames")


def video_options(samples: Sequence[Sample], processor: Any) -> dict[str, Any]:
    """Options of a processor for the videos of samples: it uses all of their frames, at their own times."""
    metadata = [
        {
            "total_num_frames": round(video.duration * RATE),
            "fps": RATE,
            "duration": video.duration,
            "frames_indices": [round(video.times[place] * RATE) for place in _places(video, processor)],
            "height": video.frames.shape[1],
            "width": video.frames.shape[2],
        }
        for video in _videos(samples)
    ]
    return {"video_metadata": metadata, "do_sample_frames": False} if metadata else {}


def set_distances(batch: MutableMapping[str, Any], samples: Sequence[Sample], processor: Any) -> None:
    """Set the distances of frames to the true ones: processors take frames / duration, which is one frame too many.

    Args:
        batch: The inputs of the samples; changed where the model reads distances.
        samples: The samples.
        processor: The processor that made the inputs.
    """
    for name in DISTANCES:
        if name in batch:
            size = processor.video_processor.temporal_patch_size
            seconds = [size * distance(video) for video in _videos(samples)]
            batch[name] = torch.tensor(seconds).to(batch[name])


def distance(video: Video) -> float:
    """The mean distance of a video's frames in seconds; its duration if it has one frame."""
    if len(video.times) == 1:
        return video.duration
    return (video.times[-1] - video.times[0]) / (len(video.times) - 1)


def _places(video: Video, processor: Any) -> list[int]:
    reader = getattr(processor, "video_processor", None)  # a model without one refuses the sample later
    least = getattr(reader, "temporal_patch_size", None) or 1
    return [min(place, len(video.times) - 1) for place in range(max(least, len(video.times)))]


def _videos(samples: Sequence[Sample]) -> list[Video]:
    return [video for sample in samples for video in sample.videos]
