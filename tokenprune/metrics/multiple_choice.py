"""Multiple choice: the option that a text chooses."""

import re
import string
from collections.abc import Sequence
from itertools import product

from tokenprune.metrics.base import Metric
from tokenprune.metrics.normalise import normalise

LETTERS = string.ascii_uppercase
#: A letter alone, in brackets, or with a mark after it: "B", "(b)", "B. a cat", "**C**: a dog".
LEADING = re.compile(r"[\s*_\"'(\[]*([A-Za-z])(?:[)\].:,]|[*_\"']|\s*\n|\s*$)")
#: Several letters: "A, B", "(A) or (B)". They name no option.
SEVERAL = re.compile(r"[\s*_\"'(\[]*[A-Z][)\].*_\"']*\s*(?:,|/|&|\bor\b|\band\b)\s*[*_\"'(\[]*[A-Z](?![\w'])")
#: A letter that the text announces: "the answer is B", "Option (C)". An "a" in lower case is the article.
ANNOUNCED = re.compile(r"\b(?i:answer|option|choice)(?i:\s+is)?[\s:*\"'(\[]*([A-Z])(?![\w'])")
BRACKETED = re.compile(r"[(\[]([A-Z])[)\]]")


class MultipleChoice(Metric):
    """1 if the text chooses the expected option, by its letter or by its text, else 0.

    The first of these rules that names an option decides: the text begins with a letter that stands alone; it is an
    option; it announces a letter ("the answer is B"); one letter is in brackets; one option occurs in it, word by word.
    An option that is part of another one that occurs does not count. A text that names none, or several, is wrong.
    Without choices the metric is exact match. An empty choice is missing: its letter names nothing.
    """

    def score(self, text: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
        """1 if the text chooses what one of the answers chooses."""
        if not choices:
            return float(normalise(text) in map(normalise, answers))
        chosen = choice(text, choices)
        return float(chosen is not None and chosen in {expected(answer, choices) for answer in answers})


def expected(answer: str, choices: Sequence[str]) -> int | None:
    """The index of the option that an expected answer names, by its letter or its whole text; None if by neither."""
    place = of_letter(answer, choices)
    return of_text(answer, choices) if place is None else place


def of_letter(answer: str, choices: Sequence[str]) -> int | None:
    """The index of the option whose letter an answer is: "B", "b", "(B)", "B."; None if it is no letter of one."""
    letter = answer.strip().strip("()[].:").upper()
    return LETTERS.index(letter) if letter in known(choices) else None


def of_text(answer: str, choices: Sequence[str]) -> int | None:
    """The index of the only option whose text an answer is, also with its letter before it; None if there is none.

    The first comparison that finds an option decides: letter for letter, or else normalised; without its letter, or
    else with it.
    """
    for form, lettered in product((plain, normalise), ("{1}", "{0} {1}")):
        said = form(answer)
        options = {index: form(lettered.format(LETTERS[index], option)) for index, option in present(choices).items()}
        found = [index for index, option in options.items() if said and said == option]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def present(choices: Sequence[str]) -> dict[int, str]:
    """Index -> option, of those that are not missing."""
    return {index: option for index, option in enumerate(choices) if option}


def known(choices: Sequence[str]) -> list[str]:
    """The letters of the options that are not missing."""
    return [LETTERS[index] for index in present(choices)]


def choice(text: str, choices: Sequence[str]) -> int | None:
    """The index of the option that a generated text chooses; None if it names none, or several."""
    letters = known(choices)
    if SEVERAL.match(text):
        return None
    leading = LEADING.match(text)
    if leading and leading[1].upper() in letters:
        return LETTERS.index(leading[1].upper())
    whole = of_text(text, choices)
    if whole is not None:
        return whole
    for pattern in (ANNOUNCED, BRACKETED):
        named = {letter for letter in pattern.findall(text) if letter in letters}
        if len(named) == 1:
            return LETTERS.index(named.pop())
    return _only_one_inside(text, choices)


def plain(text: str) -> str:
    """The text in lower case, without spaces and a period at its ends."""
    return text.strip().removesuffix(".").lower()


def _only_one_inside(text: str, choices: Sequence[str]) -> int | None:
    said = f" {normalise(text)} "
    options = {index: f" {words} " for index, option in enumerate(choices) if (words := normalise(option))}
    inside = {index: words for index, words in options.items() if words in said}
    longest = [
        index
        for index, words in inside.items()
        if not any(words in other and words != other for other in inside.values())
    ]
    return longest[0] if len(longest) == 1 else None
