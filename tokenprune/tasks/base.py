"""The contract of an evaluation task: images with questions and answers, and the pixels of the relevant objects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from tokenprune.component import Component

if TYPE_CHECKING:  # Pillow is optional: only tasks that make pictures need it
    from PIL.Image import Image


@dataclass(frozen=True)
class Sample:
    """One question about one or more images.

    Attributes:
        id: A name that is unique within the task and split, and never changes.
        images: The images, in the order in which the model gets them.
        question: The question, without the template of any model.
        answer: The expected answer, one word.
        type: The question type; results are reported per type.
        group: Id of the images. Questions about the same images are not independent, so intervals are clustered by it.
        foreground: Per image a bool mask ``[height, width]`` of the pixels that belong to objects; empty if unknown.
    """

    id: str
    images: tuple[Image, ...]
    question: str
    answer: str
    type: str
    group: str
    foreground: tuple[NDArray[np.bool_], ...] = field(repr=False, compare=False)


class Task(Component, ABC):
    """A fixed set of samples and the rule for correct answers."""

    @abstractmethod
    def samples(self) -> Sequence[Sample]:
        """The samples: the same ones in the same order on every call and machine."""

    @abstractmethod
    def correct(self, sample: Sample, text: str) -> bool:
        """Whether a generated text is a correct answer to the sample's question."""


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
