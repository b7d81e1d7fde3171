"""What the tasks of all plugins build on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tokenprune.tasks.base import Sample, first_word, foreground_tokens


def test_foreground_shares_are_areas() -> None:
    mask = np.zeros((28, 28), dtype=bool)
    mask[:14, :7] = True
    sample = Sample("a", (Image.new("RGB", (28, 28)),), "q?", "a", "t", "g", (mask,))
    torch.testing.assert_close(foreground_tokens(sample, 2, 2), torch.tensor([0.5, 0, 0, 0]))


@pytest.mark.parametrize(("text", "word"), [(" Red.", "red"), ('"Two" it is', "two"), ("", ""), (" ?! yes", "yes")])
def test_the_first_word_of_an_answer(text: str, word: str) -> None:
    assert first_word(text) == word
