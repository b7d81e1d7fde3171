"""What an evaluation task is: images with questions, one-word answers and, where known, the pixels that matter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from tokenprune.component import Component

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image


@dataclass(frozen=True)
class Sample:
    """One question about one or more images.

    Attributes:
        id: Stable and unique within a task and split.
        images: The pictures, in the order the model sees them.
        question: The natural-language question, without any model's template.
        answer: The expected answer, one word.
        type: The question type; results are reported per type.
        group: The image's id. Questions on one image are not independent: intervals are clustered by it.
        foreground: Per image a bool mask ``[height, width]`` of the pixels where the objects are.
    """

    id: str
    images: tuple[Image, ...]
    question: str
    answer: str
    type: str
    group: str
    foreground: tuple[NDArray[np.bool_], ...] = field(repr=False, compare=False)


class Task(Component, ABC):
    """A fixed set of samples and the rule that says which answers are right."""

    @abstractmethod
    def samples(self) -> Sequence[Sample]:
        """The samples, the same ones in the same order on every call and every machine."""

    @abstractmethod
    def correct(self, sample: Sample, text: str) -> bool:
        """Whether the text that a model generated answers the sample's question."""


def first_word(text: str) -> str:
    """The first word of an answer, in lower case and without punctuation."""
    for word in text.lower().split():
        word = word.strip(".,;:!?\"'()")
        if word:
            return word
    return ""


def foreground_tokens(sample: Sample, rows: int, cols: int) -> torch.Tensor:
    """The share of each visual token's patch that is foreground.

    Args:
        sample: A sample whose images are all encoded on the same grid.
        rows: Rows of visual tokens per image.
        cols: Columns of visual tokens per image.

    Returns:
        Float tensor ``[images * rows * cols]`` in the order of the visual tokens (row by row, image by image).
    """
    shares = []
    for mask in sample.foreground:
        pixels = torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None, None]
        # exact area averages, also where the grid does not divide the picture
        shares.append(torch.nn.functional.adaptive_avg_pool2d(pixels, (rows, cols)).flatten())
    return torch.cat(shares)
