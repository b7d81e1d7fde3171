"""What the tasks of all plugins build on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tokenprune.errors import SampleError
from tokenprune.tasks.base import Sample, different_images, first_word, foreground_tokens


def test_foreground_shares_are_areas() -> None:
    mask = np.zeros((28, 28), dtype=bool)
    mask[:14, :7] = True
    sample = Sample("a", (Image.new("RGB", (28, 28)),), "q?", "a", "t", "g", (mask,))
    torch.testing.assert_close(foreground_tokens(sample, 2, 2), torch.tensor([0.5, 0, 0, 0]))


@pytest.mark.parametrize(("text", "word"), [(" Red.", "red"), ('"Two" it is', "two"), ("", ""), (" ?! yes", "yes")])
def test_the_first_word_of_an_answer(text: str, word: str) -> None:
    assert first_word(text) == word


class Lines(Sequence[Sample]):
    """Three questions about each picture; the first picture cannot be read."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: Any) -> Any:
        if index < 3:
            raise SampleError(f"line {index + 1}: no such picture")
        return Sample(f"s{index}", (), "why", "", "", f"picture {index // 3}")


def test_calibration_takes_different_pictures_that_can_be_read() -> None:
    assert [sample.id for sample in different_images(Lines(), 2)] == ["s3", "s7"]
    assert [sample.id for sample in different_images(Lines(), 8)] == ["s3", "s7", "s11"]
    assert different_images(Lines(), 0) == []
