"""The samples of a task as they are understood: the first ones in words, and how many are used or left out, and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from tokenprune.datasets.picture import ON_WHITE
from tokenprune.errors import SampleError
from tokenprune.metrics.multiple_choice import expected
from tokenprune.tasks.base import Sample, Task, Video, conversation_text
from tokenprune.tasks.options import shown

if TYPE_CHECKING:
    from PIL.Image import Image

#: What differs between the messages of samples that are left out for one reason: quoted texts, paths, numbers.
VALUES = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\([^()]*[/\\][^()]*\)|[0-9]+")
PLACES = 5  # that are named of each reason
ALL = "Every sample was read, and every picture decoded."
TEXTS = "All texts were read, and all files looked for; of the pictures only those shown were decoded."
FIRST = "Only the samples that are shown were read."


@runtime_checkable
class Checkable(Protocol):
    """Samples that can be checked without decoding pictures."""

    def check(self, index: int) -> Sample:
        """A sample without its pictures; SampleError where it cannot be used."""

    def where(self, index: int) -> str:
        """The place of a sample in words, as its errors begin."""


@dataclass(frozen=True)
class Row:
    """A sample in words.

    Attributes:
        where: Its place.
        id: Its id.
        type: Its question type.
        pictures: Size of every picture; frames, size and times of every video.
        question: The question as it is asked, with choices and instruction.
        choices: The choices with their letters, where the question does not show them.
        expected: The expected answers; choices with their letters. Empty for those of the unpruned model.
    """

    where: str
    id: str
    type: str
    pictures: tuple[str, ...]
    question: str
    choices: tuple[str, ...]
    expected: tuple[str, ...]


@dataclass
class LeftOut:
    """Samples that are left out for one reason.

    Attributes:
        example: The error of the first one.
        count: How many there are.
        places: The places of the first ones.
    """

    example: SampleError
    count: int = 0
    places: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Understood:
    """The samples of a task.

    Attributes:
        count: How many were read.
        total: How many the task has.
        rows: The first ones that can be used.
        open: How many of those that can be used have no choices.
        left_out: Those that are left out, by reason.
        remarks: How the task reads its samples, in sentences, and what was read here.
    """

    count: int
    total: int
    rows: tuple[Row, ...]
    open: int
    left_out: tuple[LeftOut, ...]
    remarks: tuple[str, ...]

    @property
    def used(self) -> int:
        """How many can be used."""
        return self.count - sum(reason.count for reason in self.left_out)


def understand(task: Task, rows: int = 3, limit: int | None = None, decode: bool = False) -> Understood:
    """Read the samples of a task, as far as that needs no model.

    A task whose samples cannot be checked without decoding pictures, such as one that draws them, is read up to the
    last sample shown.

    Args:
        task: The task.
        rows: How many samples are put in words.
        limit: Only the first so many samples; all by default.
        decode: Whether every picture is decoded.

    Raises:
        TokenPruneError: The task cannot be opened.
    """
    samples = task.samples()
    total = len(samples) if limit is None else min(limit, len(samples))
    check: Callable[[int], Sample] | None = samples.__getitem__ if decode else None
    if check is None and isinstance(samples, Checkable):
        check = samples.check
    made: list[Row] = []
    reasons: dict[str, LeftOut] = {}
    count = without_choices = 0
    for index in range(total):
        if len(made) >= rows and check is None:
            break
        count += 1
        try:
            sample = samples[index] if len(made) < rows or check is None else check(index)
            without_choices += not sample.choices
            if len(made) < rows:
                made.append(_in_words(sample, _where(samples, index), task.label_free))
        except SampleError as error:
            _add(reasons, error, _where(samples, index))
    read = ALL if decode else FIRST if check is None else TEXTS
    remarks = (*task.remarks(), read)
    return Understood(count, len(samples), tuple(made), without_choices, tuple(reasons.values()), remarks)


def _where(samples: Sequence[Sample], index: int) -> str:
    return samples.where(index) if isinstance(samples, Checkable) else f"sample {index + 1}"


def _add(reasons: dict[str, LeftOut], error: SampleError, where: str) -> None:
    """Count an error with those of the same reason."""
    kind = VALUES.sub("_", error.what.removeprefix(where))
    reason = reasons.setdefault(re.sub(r"_(?:, _)+", "_", kind), LeftOut(error))
    reason.count += 1
    if len(reason.places) < PLACES:
        reason.places.append(where)


def _in_words(sample: Sample, where: str, label_free: bool) -> Row:
    pictures = [
        f"{item.width} x {item.height}{', ' + ON_WHITE if ON_WHITE in item.info else ''}" for item in sample.images
    ]
    choices = tuple(shown(sample.choices))
    return Row(
        where,
        sample.id,
        sample.type,
        (*pictures, *map(_clip, sample.videos)),
        conversation_text(sample),
        () if all(choice in sample.question for choice in choices) else choices,
        () if label_free else tuple(_expected(answer, sample) for answer in sample.references),
    )


def _picture(image: Image) -> str:
    return f"{image.width} x {image.height}{f', {ON_WHITE}' if ON_WHITE in image.info else ''}"


def _clip(video: Video) -> str:
    frames, height, width, _ = video.frames.shape
    times = ", ".join(f"{time:.4g}" for time in video.times)
    return f"{frames} frames of {width} x {height}, at {times} s"


def _expected(answer: str, sample: Sample) -> str:
    """An expected answer: its choice where it names one."""
    place = expected(answer, sample.choices) if sample.choices else None
    if place is None:
        return answer
    return shown(["" if at != place else choice for at, choice in enumerate(sample.choices)])[0]
