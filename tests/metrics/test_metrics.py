"""Every metric against its definition, worked out by hand."""

from __future__ import annotations

import pytest

from tokenprune.core import plugins
from tokenprune.metrics.agreement import Agreement
from tokenprune.metrics.anls import Anls
from tokenprune.metrics.base import Metric
from tokenprune.metrics.contains import Contains
from tokenprune.metrics.exact_match import ExactMatch
from tokenprune.metrics.multiple_choice import MultipleChoice, choice, expected
from tokenprune.metrics.normalise import normalise
from tokenprune.metrics.relaxed_accuracy import RelaxedAccuracy
from tokenprune.metrics.vqa_accuracy import VqaAccuracy


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The Red  car", "red car"),
        (" yes.\n", "yes"),
        ("Two dogs", "2 dogs"),
        ("none", "0"),
        ("1,000", "1000"),  # a comma between figures goes without a trace
        ("red/blue", "red blue"),  # a mark between letters becomes a space
        ("red, blue", "red blue"),  # one that touches a space goes
        ("t-shirt - red", "tshirt red"),  # and then it goes everywhere
        ("3.5", "3.5"),
        ("U.S.", "us"),
        ("dont", "don't"),
        ("couldn'tve couldnt've", "couldn't've couldn't've"),
        ("wed", "wed"),  # a word of its own
        ("5:30", "5:30"),
        ("Größe", "größe"),
        ("an", ""),
    ],
)
def test_normalisation(text: str, plain: str) -> None:
    assert normalise(text) == plain


@pytest.mark.parametrize("metric", [ExactMatch(), Agreement()])
def test_exact_match_and_agreement(metric: Metric) -> None:
    assert metric.score("The cat.", ["dog", "a Cat"]) == 1
    assert metric.score("cats", ["cat"]) == 0


def test_only_agreement_needs_no_answers() -> None:
    names = plugins.registry("metrics").names()
    assert {name for name in names if not plugins.registry("metrics").get(name).min_references} == {"agreement"}


@pytest.mark.parametrize(
    ("text", "score"), [("It is a cat", 1), ("a category", 0), ("not 2 black cats", 0), ("Two black dogs.", 1)]
)
def test_contains_is_about_whole_words(text: str, score: float) -> None:
    assert Contains().score(text, ["cat", "2 black dogs"]) == score


def test_contains_finds_no_empty_answer() -> None:
    assert Contains().score("anything", ["the"]) == 0


@pytest.mark.parametrize(("matches", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_over_ten_answers(matches: int, score: float) -> None:
    """One of two matches: nine times out of ten 2/3 ... the mean over the ten subsets of nine."""
    answers = ["Yes"] * matches + [f"no {number}" for number in range(10 - matches)]
    assert VqaAccuracy().score("yes.", answers) == pytest.approx(score)
    subsets = [answers[:left_out] + answers[left_out + 1 :] for left_out in range(10)]
    assert sum(min(1, subset.count("Yes") / 3) for subset in subsets) / 10 == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "answer", "score"),
    [
        ("105", "100", 1),
        ("95.0", "100", 1),
        ("105.1", "100", 0),
        ("12%", "0.12", 1),
        ("12", "12%", 0),
        ("-5", "5", 0),
        ("0.0", "0", 0),  # an expected 0 is compared as text
        ("0", "0", 1),
        ("blue", " Blue", 1),
        ("blue.", "blue", 0),
        ("100", "a hundred", 0),
        ("nan", "5", 0),
        ("2019", "2010", 1),  # years are numbers, too
    ],
)
def test_relaxed_accuracy(text: str, answer: str, score: float) -> None:
    assert RelaxedAccuracy().score(text, ["other", answer]) == score


def test_relaxed_accuracy_with_another_tolerance() -> None:
    assert RelaxedAccuracy(tolerance=0).score("101", ["100"]) == 0
    assert RelaxedAccuracy(tolerance=0.01).score("101", ["100"]) == 1


@pytest.mark.parametrize(
    ("text", "answers", "score"),
    [
        ("Hello World", ["hello  world "], 1),
        ("hello wrld", ["hello world"], 1 - 1 / 11),
        ("abcd", ["abxy"], 0),  # a distance of exactly 0.5 is too much
        ("abcde", ["abcxy"], 1 - 2 / 5),
        ("abc", ["zzz", "abd"], 1 - 1 / 3),
        ("", ["a"], 0),
        ("", [""], 1),
    ],
)
def test_anls(text: str, answers: list[str], score: float) -> None:
    assert Anls().score(text, answers) == pytest.approx(score)


def test_anls_with_another_threshold() -> None:
    assert Anls(threshold=0.6).score("abcd", ["abxy"]) == pytest.approx(0.5)


CHOICES = ("a cat", "a black cat", "Dog", "two")


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("B", 1),
        ("b", 1),
        (" (C)", 2),
        ("A.", 0),
        ("**D**: two", 3),
        ("B\nbecause it is black", 1),
        ("dog", 2),
        ("Dog.", 2),
        ("2", 3),
        ("A cat", 0),  # the option, not the letter
        ("A dog", 2),  # an article, not the letter
        ("C dog", 2),
        ("The answer is B.", 1),
        ("Answer: (C)", 2),
        ("the correct option is D", 3),
        ("I would say (B) here", 1),
        ("It is a dog", 2),
        ("I see a black cat here", 1),  # "cat" is part of it
        ("a cat and a dog", None),
        ("(A) or (B)", None),
        ("A, B", None),
        ("B, a black cat", 1),
        ("E", None),
        ("a bird", None),
        ("", None),
    ],
)
def test_which_option_a_text_chooses(text: str, index: int | None) -> None:
    assert choice(text, CHOICES) == index


@pytest.mark.parametrize(
    ("answer", "index"), [("B", 1), ("(b)", 1), ("the dog", 2), ("2", 3), ("E", None), ("ca", None)]
)
def test_which_option_an_answer_names(answer: str, index: int | None) -> None:
    assert expected(answer, CHOICES) == index


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("A", None),
        ("B", 1),
        ("(d)", 3),
        ("A. two", 1),  # by its text
        ("two", 1),
        ("the answer is A", None),
        ("", None),
        ("(A)", None),
    ],
)
def test_letters_of_missing_choices_name_nothing(text: str, index: int | None) -> None:
    gap = ("", "two", "one", "three")
    assert choice(text, gap) == index
    assert expected(text, gap) == index or text.startswith("the answer")


def test_a_text_of_two_choices_names_none() -> None:
    assert expected("cat", ["cat", "dog", "cat"]) is None
    assert choice("Cat.", ["the cat", "dog", "a cat"]) is None
    assert choice("a cat", ["cat", "a cat"]) == 1, "the whole choice before one with its letter"


def test_multiple_choice() -> None:
    metric = MultipleChoice()
    assert metric.score("The answer is C", ["Dog"], CHOICES) == 1
    assert metric.score("a dog", ["C"], CHOICES) == 1
    assert metric.score("a cat", ["C"], CHOICES) == 0
    assert metric.score("no idea", ["C"], CHOICES) == 0
    assert metric.score("The dog.", ["dog"]) == 1, "without choices: exact match"
    assert choice("12", ["2", "12", "cat", "a cat"]) == 1
    assert choice("cat", ["2", "12", "a cat", "cat"]) == 3, "letter for letter before normalised"
