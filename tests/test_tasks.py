"""The evaluation tasks: deterministic, balanced, honest about their splits and their foreground."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from tokenprune.errors import ConfigError, MissingDataError
from tokenprune.tasks import easy_vqa, scenes
from tokenprune.tasks.base import Sample, Task, first_word, foreground_tokens
from tokenprune.tasks.digits import Digits
from tokenprune.tasks.easy_vqa import EasyVQA


def ready(task: Task) -> Task:
    try:
        task.samples()
    except MissingDataError as error:
        pytest.skip(str(error))
    return task


@pytest.fixture(params=[Digits, EasyVQA], ids=["digits", "easy-vqa"])
def kind(request: pytest.FixtureRequest) -> type[Task]:
    ready(request.param(questions=4))
    return request.param


def test_the_same_samples_every_time(kind: type[Task]) -> None:
    first = kind(questions=40).samples()
    for module in ("tokenprune.tasks.digits", "tokenprune.tasks.easy_vqa"):
        __import__(module, fromlist=["_samples"])._samples.cache_clear()
    second = kind(questions=40).samples()
    assert first == second or [s.id for s in first] == [s.id for s in second]
    for one, two in zip(first, second, strict=True):
        assert (one.question, one.answer) == (two.question, two.answer)
        assert one.images[0].tobytes() == two.images[0].tobytes()


def test_fewer_questions_are_a_prefix_and_balanced(kind: type[Task]) -> None:
    many, few = kind(questions=80).samples(), kind(questions=20).samples()
    assert [s.id for s in many[:20]] == [s.id for s in few]
    counts = Counter(sample.type for sample in many)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len({sample.id for sample in many}) == 80


def test_answers_are_one_word_and_judged(kind: type[Task]) -> None:
    task = kind(questions=40)
    for sample in task.samples():
        assert first_word(sample.answer) == sample.answer
        assert task.correct(sample, f" {sample.answer.capitalize()}.")
        assert not task.correct(sample, "")
        assert not task.correct(sample, "maybe " + sample.answer)


def test_splits_and_seeds_differ(kind: type[Task]) -> None:
    def pictures(task: Task) -> set[bytes]:
        return {sample.images[0].tobytes() for sample in task.samples()}

    base = pictures(kind(questions=40))
    assert base.isdisjoint(pictures(kind(questions=40, split="validation")))
    assert base.isdisjoint(pictures(kind(questions=40, seed=1)))


def test_the_foreground_fits_in_sixteen_tokens(kind: type[Task]) -> None:
    for sample in kind(questions=60).samples():
        shares = foreground_tokens(sample, 12, 12)
        assert shares.shape == (144,)
        assert 0 < int((shares > 0).sum()) <= 16


def test_no_handwritten_digit_is_in_two_splits() -> None:
    ready(Digits(questions=1))
    pools = [scenes.pool(split) for split in ("train", "validation", "test")]
    assert sum(len(pool.labels) for pool in pools) == 1797
    seen: set[bytes] = set()
    for pool in pools:
        images = {image.tobytes() for image in pool.images}
        assert seen.isdisjoint(images)
        seen |= images
        assert set(pool.labels) == set(range(10))


def test_scenes_hold_what_they_say() -> None:
    ready(Digits(questions=1))
    rng = np.random.default_rng(0)
    for count in (1, 2, 3):
        scene = scenes.draw(rng, scenes.pool("train"), count)
        assert len({digit.word for digit in scene.digits}) == len({digit.colour for digit in scene.digits}) == count
        for digit in scene.digits:
            top, left = digit.row * scenes.PATCH, digit.col * scenes.PATCH
            box = np.s_[top : top + scenes.DIGIT, left : left + scenes.DIGIT]
            inks = scene.pixels[box].reshape(-1, 3).astype(float)
            ink = inks[inks.max(axis=1).argmax()]  # where the ink is full, nothing of the background shows
            nearest = min(scenes.COLOURS, key=lambda name: np.abs(ink - scenes.COLOURS[name]).sum())
            assert nearest == digit.colour


def test_figures_count_as_words() -> None:
    ready(Digits(questions=1))
    sample = next(s for s in Digits(questions=40).samples() if s.type == "recognise")
    figure = str(scenes.WORDS.index(sample.answer))
    assert Digits().correct(sample, figure)
    assert not Digits().correct(sample, "99")


def test_types_of_easy_vqa() -> None:
    assert easy_vqa.kind_of("what color is the circle?") == "color"
    assert easy_vqa.kind_of("what is the red shape?") == "shape"
    assert easy_vqa.kind_of("is there a teal shape?") == "exist"
    assert easy_vqa.kind_of("does the image not contain a circle?") == "absent"


def test_more_questions_than_there_are() -> None:
    ready(EasyVQA(questions=1))
    with pytest.raises(ConfigError, match="100000"):
        EasyVQA(questions=100_000).samples()
    with pytest.raises(ValidationError, match="less than or equal"):
        Digits(questions=100_000)


def test_foreground_shares_are_areas() -> None:
    mask = np.zeros((28, 28), dtype=bool)
    mask[:14, :7] = True
    sample = Sample("a", (Image.new("RGB", (28, 28)),), "q?", "a", "t", "g", (mask,))
    torch.testing.assert_close(foreground_tokens(sample, 2, 2), torch.tensor([0.5, 0, 0, 0]))
