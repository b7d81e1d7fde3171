"""Samples as conversations, and conversations as a model's inputs, by the processor of a checkpoint."""

from collections.abc import MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenprune.datasets.values import short
from tokenprune.errors import SampleError, UnsupportedModelError
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
    """Options of a processor for the videos of samples: it uses all of their frames, at their own times.

    Most processors of transformers write the times into the prompt (Qwen3-VL, SmolVLM, GLM-4V, Gemma 4 ...): the number
    of a frame, divided by the frames per second of the video. Here the number counts milliseconds, so that any time can
    be told. Qwen2.5-VL and Qwen Omni get one distance for all frames of a video instead. Other families know no times.
    """
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


class ChatEncoder:
    """Makes batches with a processor's chat template.

    Args:
        processor: The processor of images and text, and of videos if the model takes them.
        model: The model: the batches are on its device and in its precision.
        name: The model's name, for errors.
        system: A system prompt; empty for none.
        instruction: Appended to every question.
        template: Replaces the processor's chat template.

    Raises:
        UnsupportedModelError: There is no chat template.
    """

    def __init__(
        self,
        processor: Any,
        model: Any,
        name: str,
        system: str = "",
        instruction: str = "",
        template: str | None = None,
    ) -> None:
        if template is None and not has_template(processor):
            raise UnsupportedModelError(
                f"checkpoint {name!r} has no chat template",
                "give one as chat_template, or put a chat_template.jinja into its folder",
            )
        self.processor, self.model, self.name = processor, model, name
        self.system, self.instruction, self.template = system, instruction, template

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """A left-padded batch.

        Raises:
            SampleError: The model cannot take a sample's images or videos, or not together with those of others.
        """
        chats = [self.chat(sample) for sample in samples]
        for sample, chat in zip(samples, chats, strict=True):
            self.check(sample, chat)
        check_lengths(samples, self.processor, self.name)
        batch = self.processor.apply_chat_template(
            chats,
            chat_template=self.template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, **video_options(samples, self.processor)},
        ).to(self.model.device)
        batch.pop("labels", None)  # of PaliGemma: a prefill would compute a loss
        set_distances(batch, samples, self.processor)
        # times in seconds stay exact
        return {
            key: value.to(self.model.dtype) if key.startswith("pixel_values") else value for key, value in batch.items()
        }

    def chat(self, sample: Sample) -> list[dict[str, Any]]:
        """A sample as a conversation: its images and videos, its earlier turns, its question and the instruction."""
        system = sample.system or self.system
        chat = [turn("system", system)] if system else []
        first = len(chat)
        for asked, said in sample.history:
            chat += [turn("user", asked), turn("assistant", said)]
        chat.append(turn("user", f"{sample.question} {self.instruction}".strip()))
        media: list[dict[str, Any]] = [{"type": "image", "image": image} for image in sample.images]
        media += [{"type": "video", "video": frames_of(video, self.processor)} for video in sample.videos]
        chat[first]["content"][:0] = media
        return chat

    def check(self, sample: Sample, chat: list[dict[str, Any]]) -> None:
        """Whether the prompt of a sample shows its earlier turns and all of its images and videos, and nothing else.

        Raises:
            SampleError: It does not.
        """
        if sample.videos and getattr(self.processor, "video_processor", None) is None:
            raise SampleError(
                f"sample {sample.id!r} has a video, but {self.name} takes none", "use a model that takes videos"
            )
        token = getattr(self.processor, "image_token", None)
        counted = isinstance(token, str) and not sample.videos  # some write a video as images
        earlier = [text for pair in sample.history for text in pair] + [sample.system]
        if not counted and not any(earlier):
            return
        prompt = self.processor.apply_chat_template(
            chat, chat_template=self.template, add_generation_prompt=True, tokenize=False
        )
        for text in earlier:
            if text.strip() not in prompt:
                raise SampleError(
                    f"sample {sample.id!r} has earlier turns, but a prompt of {self.name} does not show {short(text)}",
                    "use a model, or a chat_template, for conversations",
                )
        if not counted:
            return
        shown, count = prompt.count(token), len(sample.images)
        if 0 < shown < count:  # with none, the processor has another placeholder, or puts it there itself
            raise SampleError(
                f"sample {sample.id!r} has {count} images, but a prompt of {self.name} shows {shown}",
                "use a model, or a chat_template, for several images",
            )
        if shown > count:
            raise SampleError(
                f"sample {sample.id!r} has {count} images, but its prompt has {shown} placeholders",
                f"remove {token!r} from its question",
            )


def has_template(processor: Any) -> bool:
    """Whether a processor, or its tokenizer, has a chat template."""
    owners = (processor, getattr(processor, "tokenizer", None))
    return any(getattr(owner, "chat_template", None) for owner in owners)


def turn(role: str, text: str) -> dict[str, Any]:
    """One turn of a conversation."""
    return {"role": role, "content": [{"type": "text", "text": text}]}


def limit_pixels(processor: Any, name: str, smallest: int | None, largest: int | None) -> None:
    """Set how many pixels an image has after it is resized.

    Args:
        processor: The processor; it is changed.
        name: The checkpoint, for the error.
        smallest: The fewest pixels; None leaves the processor's own.
        largest: The most pixels; None leaves the processor's own.

    Raises:
        UnsupportedModelError: The processor does not resize to a number of pixels.
    """
    given = {"shortest_edge": smallest, "longest_edge": largest}  # so the processors call these numbers of pixels
    given = {key: value for key, value in given.items() if value is not None}
    if not given:
        return
    images = getattr(processor, "image_processor", None)
    known = getattr(getattr(images, "valid_kwargs", None), "__annotations__", {})
    if images is None or not {"min_pixels", "max_pixels"} <= set(known):
        raise UnsupportedModelError(
            f"checkpoint {name!r} does not resize images to a number of pixels",
            "remove min_pixels and max_pixels; the Qwen-VL families have them",
        )
    size = {**dict(images.size), **given}
    if size["shortest_edge"] > size["longest_edge"]:
        raise UnsupportedModelError(
            f"checkpoint {name!r} would resize images to at least {size['shortest_edge']} and at most"
            f" {size['longest_edge']} pixels",
            "give both min_pixels and max_pixels",
        )
    images.size = type(images.size)(**size)
