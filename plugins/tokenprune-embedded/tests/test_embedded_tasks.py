"""The evaluation tasks: deterministic, balanced, honest about their splits and their foreground."""

from __future__ import annotations

from collections import Counter
from typing import cast

import numpy as np
import pytest

from tokenprune.authoring import ConfigError, Sample, Task, first_word, foreground_tokens
from tokenprune_embedded.tasks import clips, easy_vqa, scenes
from tokenprune_embedded.tasks.digits import Digits
from tokenprune_embedded.tasks.easy_vqa import EasyVQA
from tokenprune_embedded.tasks.moving_digits import MovingDigits, clip
from tokenprune_embedded.tasks.splits import Split

Kind = type[Digits] | type[EasyVQA] | type[MovingDigits]


@pytest.fixture(params=[Digits, EasyVQA, MovingDigits], ids=["digits", "easy-vqa", "moving-digits"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return cast(Kind, request.param)


def test_the_same_samples_every_time(kind: Kind) -> None:
    first = kind(questions=40).samples()
    __import__(kind.__module__, fromlist=["_samples"])._samples.cache_clear()
    second = kind(questions=40).samples()
    assert first == second or [s.id for s in first] == [s.id for s in second]
    for one, two in zip(first, second, strict=True):
        assert (one.question, one.answer) == (two.question, two.answer)
        assert [image.tobytes() for image in one.images] == [image.tobytes() for image in two.images]


def test_fewer_questions_are_a_prefix_and_balanced(kind: Kind) -> None:
    many, few = kind(questions=80).samples(), kind(questions=20).samples()
    assert [s.id for s in many[:20]] == [s.id for s in few]
    counts = Counter(sample.type for sample in many)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len({sample.id for sample in many}) == 80


def test_answers_are_one_word_and_judged(kind: Kind) -> None:
    task = kind(questions=40)
    for sample in task.samples():
        assert first_word(sample.answer) == sample.answer
        assert task.score(sample, f" {sample.answer.capitalize()}.")
        assert not task.score(sample, "")
        assert not task.score(sample, "maybe " + sample.answer)


def test_splits_and_seeds_differ(kind: Kind) -> None:
    def pictures(task: Task) -> set[bytes]:
        return {sample.images[0].tobytes() for sample in task.samples()}

    base = pictures(kind(questions=40))
    assert base.isdisjoint(pictures(kind(questions=40, split="validation")))
    assert base.isdisjoint(pictures(kind(questions=40, seed=1)))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_no_run_calibrates_on_the_split_that_it_measures(kind: Kind, split: Split) -> None:
    """Nor on pictures that the models were trained on, unless the unseen ones are measured."""
    expected = "train" if split == "validation" else "validation"
    task = kind(questions=40, split=split)
    chosen = task.calibration(12)
    assert len(chosen) == len({sample.group for sample in chosen}) == 12
    assert {sample.group for sample in chosen} <= {s.group for s in kind(questions=60, split=expected).samples()}
    measured = {image.tobytes() for sample in task.samples() for image in sample.images}
    assert measured.isdisjoint(image.tobytes() for sample in chosen for image in sample.images)
    assert {sample.type for sample in chosen} == {sample.type for sample in task.samples()}
    assert [sample.id for sample in task.calibration(5)] == [sample.id for sample in chosen[:5]]


def test_a_calibration_on_more_pictures_than_there_are_takes_all() -> None:
    pictures = easy_vqa.complete("validation")
    assert 0 < len(pictures) < easy_vqa.HELD_OUT
    assert len(EasyVQA().calibration(easy_vqa.HELD_OUT + 1)) == len(pictures)


@pytest.mark.parametrize("single", [Digits, EasyVQA])
def test_the_foreground_fits_in_sixteen_tokens(single: Kind) -> None:
    for sample in single(questions=60).samples():
        shares = foreground_tokens(sample, 12, 12)
        assert shares.shape == (144,)
        assert 0 < int((shares > 0).sum()) <= 16


def test_no_handwritten_digit_is_in_two_splits() -> None:
    pools = [scenes.pool(split) for split in ("train", "validation", "test")]
    assert sum(len(pool.labels) for pool in pools) == 1797
    seen: set[bytes] = set()
    for pool in pools:
        images = {image.tobytes() for image in pool.images}
        assert seen.isdisjoint(images)
        seen |= images
        assert set(pool.labels) == set(range(10))


def test_scenes_hold_what_they_say() -> None:
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


def shown(sample: Sample) -> list[list[tuple[str, int, int]]]:
    """(colour, row, column in pixels) of what the pixels of each frame show, read without the clip's own record."""
    seen = []
    for image, mask in zip(sample.images, sample.foreground, strict=True):
        rows, cols = np.nonzero(mask)
        inks, found = np.asarray(image, dtype=float)[rows, cols], []
        far = {name: np.abs(inks - colour) for name, colour in scenes.COLOURS.items()}
        for name in scenes.COLOURS:
            others = [far[other].sum(-1) for other in scenes.COLOURS if other != name]
            near = (far[name].max(-1) < 60) & (far[name].sum(-1) < np.min(others, axis=0))
            if near.sum() > 20:  # ends of strokes mix with the background, so a few pixels look like another colour
                found.append((name, int(np.median(rows[near])), int(np.median(cols[near]))))
        seen.append(found)
    return seen


@pytest.mark.slow
def test_clips_show_what_their_answers_say() -> None:
    """Which colour moves, where, and which appears last, read from the pixels; ``Clip`` says what digit has it."""
    ways = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
    for number, sample in enumerate(MovingDigits(questions=90, split="train").samples()):
        colours = {actor.word: actor.colour for actor in clip("train", 0, number // 3).actors}
        places: dict[str, list[tuple[int, int, int]]] = {}
        for frame, found in enumerate(shown(sample)):
            for colour, row, col in found:
                places.setdefault(colour, []).append((frame, row, col))
        assert set(places) == set(colours.values())
        first = {colour: where[0][0] for colour, where in places.items()}
        assert all([w[0] for w in where] == list(range(first[c], clips.FRAMES)) for c, where in places.items())
        assert len(set(first.values())) == len(first)
        assert 0 in first.values()
        path = {colour: np.subtract(where[-1], where[0])[1:] / scenes.PATCH for colour, where in places.items()}
        step = {colour: np.rint(way).astype(int) for colour, way in path.items()}
        assert all(np.abs(path[colour] - step[colour]).max() < 0.3 for colour in path)
        moved = [colour for colour, way in step.items() if way.any()]
        assert len(moved) == 1
        if sample.type == "move":
            assert colours[sample.answer] == moved[0]
        elif sample.type == "last":
            assert colours[sample.answer] == max(first, key=first.__getitem__)
        else:
            assert tuple(np.sign(step[moved[0]])) == ways[sample.answer]
            assert 2 <= np.abs(step[moved[0]]).sum() <= 4


@pytest.mark.slow
def test_clips_are_balanced() -> None:
    """No way and no digit is an answer much more often than the others; no place in time or number of digits hints."""
    counts: dict[str, Counter[str]] = {}
    for sample in MovingDigits(questions=1200, split="train").samples():
        counts.setdefault(sample.type, Counter())[sample.answer] += 1
    assert set(counts) == {"move", "direction", "last"}
    assert max(counts["direction"].values()) < 0.32 * 400
    assert max(counts["move"].values()) < 0.15 * 400
    assert max(counts["last"].values()) < 0.15 * 400
    drawn = [clip("train", 0, number) for number in range(400)]
    assert 0.35 < np.mean([one.mover == one.actors[-1] for one in drawn]) < 0.5  # a half of two, a third of three


def test_figures_count_as_words() -> None:
    sample = next(s for s in Digits(questions=40).samples() if s.type == "recognise")
    figure = str(scenes.WORDS.index(sample.answer))
    assert Digits().score(sample, figure)
    assert not Digits().score(sample, "99")


def test_types_of_easy_vqa() -> None:
    assert easy_vqa.kind_of("what color is the circle?") == "color"
    assert easy_vqa.kind_of("what is the red shape?") == "shape"
    assert easy_vqa.kind_of("is there a teal shape?") == "exist"
    assert easy_vqa.kind_of("does the image not contain a circle?") == "absent"


@pytest.mark.slow
def test_more_questions_than_there_are() -> None:
    with pytest.raises(ConfigError, match="100000"):
        EasyVQA(questions=100_000).samples()
    with pytest.raises(ConfigError, match="less than or equal"):
        Digits(questions=100_000)
