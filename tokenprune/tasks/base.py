"""The contract of an evaluation task: images with questions and answers, and the pixels of the relevant objects."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from traceback import walk_tb
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenprune.core.component import Component
from tokenprune.core.component_errors import component_errors
from tokenprune.core.text import well_formed
from tokenprune.errors import PluginError, SampleError
from tokenprune.metrics.base import Metric

if TYPE_CHECKING:  # Pillow is optional: only tasks that make pictures need it
    from PIL.Image import Image


@dataclass(frozen=True)
class Video:
    """Frames of a video, each with its time.

    Attributes:
        frames: uint8 array ``[frames, height, width, 3]``, RGB.
        times: When each frame is shown, in seconds from the first frame of the video, ascending.
        duration: How long the video is, in seconds; longer than its last time.

    Raises:
        SampleError: There are no frames, or the times do not fit them.
    """

    frames: NDArray[np.uint8] = field(repr=False)
    times: tuple[float, ...]
    duration: float

    def __post_init__(self) -> None:
        """Check the times: some models are told them in words, others by positions."""
        if not len(self.frames) or len(self.frames) != len(self.times):
            what = f"a video has {len(self.frames)} frames and {len(self.times)} times"
            raise SampleError(what, "give at least one frame, and one time per frame")
        edges = (*self.times, self.duration)
        if self.times[0] < 0 or not all(one < other < math.inf for one, other in itertools.pairwise(edges)):
            what = f"the times {self.times} and the duration {self.duration} of a video do not ascend"
            raise SampleError(what, "give seconds from 0 on, each above the one before, and a longer duration")

    @classmethod
    def at_rate(cls, frames: NDArray[np.uint8], rate: float) -> Video:
        """All frames of a video with so many per second.

        Args:
            frames: See the attribute.
            rate: Frames per second.
        """
        return cls(frames, tuple(index / rate for index in range(len(frames))), len(frames) / rate)


@dataclass(frozen=True)
class Sample:
    """One question about one or more images or videos.

    Lone surrogates in its texts, which no file can hold, are replaced by U+FFFD.

    Attributes:
        id: A name that is unique within the task and split, and never changes.
        images: The images, in the order in which the model gets them.
        question: The question, without the template of any model.
        answer: The expected answer; empty if it is unknown.
        type: The question type; results are reported per type.
        group: Id of the images. Questions about the same images are not independent, so intervals are clustered by it.
        foreground: Per image a bool mask ``[height, width]`` of the pixels that belong to objects; empty if unknown.
        answers: All expected answers, e.g. those of ten annotators; by default ``(answer,)``.
        choices: The answers that a multiple-choice question offers: the first one has the letter A. One that is missing
            is an empty text. Empty for an open question.
        videos: The videos, after the images.
        history: Earlier turns of the conversation, each a question and its answer. Images and videos belong to the
            first one.
        system: A text before the conversation that says how to answer; it replaces the model's own.

    Raises:
        SampleError: A text is no text, or a turn is no pair.
    """

    id: str
    images: tuple[Image, ...]
    question: str
    answer: str
    type: str
    group: str
    foreground: tuple[NDArray[np.bool_], ...] = field(default=(), repr=False, compare=False)
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    videos: tuple[Video, ...] = field(default=(), repr=False, compare=False)
    history: tuple[tuple[str, str], ...] = ()
    system: str = ""

    def __post_init__(self) -> None:
        """Check and repair the texts, so that no later step fails on one: not the last one, after all answers."""
        for name in ("id", "question", "answer", "type", "group", "system"):
            object.__setattr__(self, name, self._text(name, getattr(self, name)))
        for name in ("answers", "choices"):
            values: Any = getattr(self, name)
            if not isinstance(values, tuple | list):
                raise self._wrong(name, values, "a tuple of texts")
            object.__setattr__(self, name, tuple(self._text(name, value) for value in values))
        object.__setattr__(self, "history", self._turns(self.history))

    def _turns(self, history: Any) -> tuple[tuple[str, str], ...]:
        turns = history if isinstance(history, tuple | list) else [history]
        if not all(isinstance(turn, tuple | list) and len(turn) == 2 for turn in turns):
            raise self._wrong("history", history, "a tuple of pairs, each a question and its answer")
        return tuple((self._text("history", asked), self._text("history", said)) for asked, said in turns)

    def _text(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise self._wrong(name, value, "text")
        return well_formed(value)

    def _wrong(self, name: str, value: Any, wanted: str) -> SampleError:
        return SampleError(
            f"sample {self.id!r}: {name} is of the type {type(value).__name__}, not {wanted}",
            "let the task convert it, e.g. with str()",
        )

    @property
    def references(self) -> tuple[str, ...]:
        """All expected answers: ``answers``, or the only one."""
        return self.answers or ((self.answer,) if self.answer else ())


def sample_pictures(sample: Sample) -> list[Image | NDArray[np.uint8]]:
    """The pictures of a sample in the order of the prompt: its images, then the frames of its videos."""
    return [*sample.images, *(frame for video in sample.videos for frame in video.frames)]


def conversation_text(sample: Sample) -> str:
    """The question of a sample for people to read, with the earlier turns before it."""
    earlier = [f"{asked} \u2192 {said}" for asked, said in sample.history]
    system = [f"(system) {sample.system}"] if sample.system else []
    return "\n".join([*system, *earlier, sample.question])


def sample_seed(sample: Sample) -> int:
    """A seed made of what the model is shown of a sample, whatever the sample is called: its pictures and texts."""
    digest = blake2b(sample.question.encode(), digest_size=8)
    times = tuple(video.times for video in sample.videos)
    for more in filter(None, (sample.system, sample.history, times)):
        digest.update(repr(more).encode())
    for picture in sample_pictures(sample):
        pixels = np.ascontiguousarray(picture)
        digest.update(repr((pixels.shape, pixels.dtype.str)).encode())
        digest.update(pixels.tobytes())
    return int.from_bytes(digest.digest()) >> 1  # torch takes 63 bits


class Task(Component, ABC):
    """A fixed sequence of samples and the rule that scores an answer."""

    @property
    def label_free(self) -> bool:
        """Whether the task has no answers. The unpruned model's answer to each sample then stands in for its answer."""
        return False

    @abstractmethod
    def samples(self) -> Sequence[Sample]:
        """The samples: the same ones in the same order on every call and machine.

        The sequence may read a sample when it is asked for it, so that a large task needs little memory.
        ``samples()[i]`` then raises :class:`~tokenprune.errors.SampleError` where a sample cannot be read.
        """

    def fingerprints(self) -> Sequence[str] | None:
        """One short text per sample that changes when the sample does, made without decoding pictures.

        None, the default, says that the task's settings alone determine its samples.
        """
        return None

    def remarks(self) -> Sequence[str]:
        """Sentences about how the task reads its samples, shown with the first of them; by default none."""
        return ()

    def used_metrics(self) -> Sequence[Metric]:
        """The metrics that :meth:`score` uses: a folder of results records the version of their code.

        By default those among the task's fields.
        """
        values = (getattr(self, name) for name in type(self).model_fields)
        return [value for value in values if isinstance(value, Metric)]

    @abstractmethod
    def score(self, sample: Sample, text: str) -> float:
        """The score of a generated text as an answer to the sample's question, from 0 (wrong) to 1 (right)."""

    def calibration(self, count: int) -> Sequence[Sample]:
        """Samples of different images on which layer selectors measure a model. Their answers are not used.

        By default they are the task's own first ones. A task with splits takes them from one that it does not measure,
        and where it can from one that the model was not trained on: there a model promises what it keeps on new images.

        Args:
            count: The number of samples; fewer are returned if the task has not enough images.
        """
        return different_images(self.samples(), count)


def checked_score(task: Task, sample: Sample, text: str) -> float:
    """A task's score of a text as an answer to a sample.

    Raises:
        PluginError: It is no number from 0 to 1, or the task or its metric fails; the message names which.
    """
    try:
        given: Any = task.score(sample, text)
    except Exception as error:
        metric = next((item for item in task.used_metrics() if _runs(item, error)), None)
        kind, component = ("tasks", task) if metric is None else ("metrics", metric)
        with component_errors(kind, component, "score()"):
            raise
    try:
        score = float(given)
        shown = f"{score:g}"
    except (TypeError, ValueError):
        score, shown = math.nan, repr(given)
    if not 0 <= score <= 1:
        raise PluginError(
            f"the task {type(task).__name__} scores the answer {text!r} of sample {sample.id!r} with {shown}",
            "let its score() return a number from 0 (wrong) to 1 (right)",
        )
    return score


def _runs(component: object, error: Exception) -> bool:
    """Whether an exception was raised inside a component's function."""
    return any(frame.f_locals.get("self") is component for frame, _ in walk_tb(error.__traceback__))


def different_images(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Samples that are about different images: the first ``count`` images, with questions of different kinds.

    Of the questions about the n-th image the n-th is taken, in turn, so that a task which asks the same kinds of
    questions about every image is represented by all of them. Samples that cannot be read are passed over.

    Args:
        samples: The samples; those about the same images stand next to each other.
        count: The number of samples.
    """
    chosen: list[Sample] = []
    image: list[Sample] = []  # the samples about the image in work
    earlier: set[str] = set()

    def close() -> None:
        if image:
            earlier.add(image[0].group)
            chosen.append(image[len(chosen) % len(image)])
            image.clear()

    for index in range(len(samples)):
        if len(chosen) == count:
            break
        try:
            sample = samples[index]
        except SampleError:
            continue
        if image and sample.group != image[0].group:
            close()
        if sample.group not in earlier:
            image.append(sample)
    close()
    return chosen[:count]


def first_word(text: str) -> str:
    """The first word of an answer, in lower case and without punctuation."""
    for word in text.lower().split():
        word = word.strip(".,;:!?\"'()")
        if word:
            return word
    return ""


def foreground_tokens(sample: Sample, rows: int, cols: int) -> torch.Tensor:
    """The share of foreground pixels in the patch of each visual token.

    Args:
        sample: A sample whose images have equally many visual tokens.
        rows: Rows of visual tokens per image.
        cols: Columns of visual tokens per image.

    Returns:
        Float tensor ``[images * rows * cols]``, in the order of the visual tokens: image by image, row by row.
    """
    shares_per_image = []
    for mask in sample.foreground:
        pixels = torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None, None]
        # adaptive pooling gives exact area averages even if the grid does not divide the image
        shares_per_image.append(torch.nn.functional.adaptive_avg_pool2d(pixels, (rows, cols)).flatten())
    return torch.cat(shares_per_image)
