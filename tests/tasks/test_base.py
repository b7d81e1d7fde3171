"""What the tasks of all plugins build on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tokenprune.errors import SampleError
from tokenprune.tasks.base import (
    Sample,
    Video,
    conversation_text,
    different_images,
    first_word,
    foreground_tokens,
    sample_seed,
)


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


def test_what_is_said_before_counts_as_shown() -> None:
    """Answers to other conversations are drawn with other numbers; samples of old keep theirs."""
    plain = Sample("a", (), "why", "", "", "")
    assert sample_seed(plain) == int.from_bytes(blake2b(b"why", digest_size=8).digest()) >> 1
    frames = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    others: list[dict[str, Any]] = [
        {},
        {"history": (("a", "b"),)},
        {"history": (("a", "c"),)},
        {"system": "a"},
        {"videos": (Video.at_rate(frames, 1),)},
        {"videos": (Video.at_rate(frames, 2),)},
    ]
    assert len({sample_seed(Sample("a", (), "why", "", "", "", **fields)) for fields in others}) == len(others)


@pytest.mark.parametrize("history", [("a", "b"), "ab", (("a",),), ((1, "b"),), None])
def test_a_history_is_made_of_pairs(history: Any) -> None:
    with pytest.raises(SampleError, match="sample 'a': history is of the type"):
        Sample("a", (), "why", "", "", "", history=history)


def test_lone_surrogates_in_earlier_turns() -> None:
    assert Sample("a", (), "why", "", "", "", history=(("\ud800", "b"),)).history == (("\ufffd", "b"),)


@pytest.mark.parametrize(
    ("times", "duration", "what"),
    [
        ((0.0,), 1.0, "2 frames and 1 times"),
        ((0.0, 0.0), 1.0, "do not ascend"),
        ((0.0, 1.0), 1.0, "do not ascend"),
        ((-1.0, 1.0), 2.0, "do not ascend"),
        ((0.0, math.nan), 1.0, "do not ascend"),
        ((0.0, 1.0), math.inf, "do not ascend"),
    ],
)
def test_times_of_a_video(times: tuple[float, ...], duration: float, what: str) -> None:
    with pytest.raises(SampleError, match=what):
        Video(np.zeros((2, 4, 4, 3), dtype=np.uint8), times, duration)
    assert Video.at_rate(np.zeros((2, 4, 4, 3), dtype=np.uint8), 4).times == (0, 0.25)


def test_a_conversation_for_people() -> None:
    sample = Sample("a", (), "why", "", "", "", history=(("who", "he"),), system="be brief")
    assert conversation_text(sample) == "(system) be brief\nwho \u2192 he\nwhy"
    assert conversation_text(Sample("a", (), "why", "", "", "")) == "why"
