"""What an answer says about the choices: a letter, a text or an index. Where only one fits all rows, it is found."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal, get_args

from tokenprune.errors import ConfigError, SampleError
from tokenprune.metrics.multiple_choice import LETTERS, expected, known, of_letter, of_text, plain
from tokenprune.tasks.options import OWN, quoted

AnswerIs = Literal["letter", "text", "index0", "index1"]
READINGS: tuple[AnswerIs, ...] = get_args(AnswerIs)
WORDS: Mapping[AnswerIs, str] = {
    "letter": "the letter",
    "text": "the text",
    "index0": "the index (from 0)",
    "index1": "the index (from 1)",
}
LETTER = re.compile(r"\(?[A-Za-z][).]?")
INDEX = re.compile(r"[0-9]{1,2}")
FIX = "write answer_is: letter, text, index0 (counted from 0) or index1 (from 1); other rows are left out"
FIX_ROW = (
    "set answer_is to what answers are, name another column (columns: {answer: NAME}), or ask without choices"
    " (columns: {choices: null})"
)

Choices = Sequence[str]
#: Answers and choices of a row; None where the row cannot be read, or has no choices.
Asked = tuple[Sequence[str], Choices] | None


def place_of(answer: str, choices: Choices, reading: AnswerIs) -> int | None:
    """The place of the choice that an answer names in one reading; None if it names none."""
    return _PLACES[reading](answer, choices)


def _counted_from(start: int) -> Callable[[str, Choices], int | None]:
    def place(answer: str, choices: Choices) -> int | None:
        if not INDEX.fullmatch(answer):
            return None
        found = int(answer) - start
        return found if 0 <= found < len(choices) and choices[found] else None

    return place


_PLACES: Mapping[AnswerIs, Callable[[str, Choices], int | None]] = {
    "letter": of_letter,
    "text": of_text,
    "index0": _counted_from(0),
    "index1": _counted_from(1),
}


def canonical(answer: str, choices: Choices, reading: AnswerIs | None, where: str) -> str:
    """The answer in the form that metrics take: as it is, or the letter of its choice where that would say another one.

    Args:
        answer: The answer.
        choices: The choices of its row; empty for an open question in a table with choices.
        reading: What answers are; None for letters and texts, whichever each answer is.
        where: The row, for messages.

    Raises:
        SampleError: The answer names no choice, or two different ones; or the question is open, and the answer looks
            like the letter or index of a choice that is missing.
    """
    if not choices:
        return _open(answer, reading, where)
    allowed: tuple[AnswerIs, ...] = ("letter", "text") if reading is None else (reading,)
    places = {place for each in allowed if (place := place_of(answer, choices, each)) is not None}
    if not places:
        meant = " or ".join(WORDS[each] for each in allowed)
        what = f"{where}: the answer {answer!r} is not {meant} of a choice ({quoted(choices)})"
        raise SampleError(what, FIX_ROW)
    if len(places) > 1:
        what = f"{where}: the answer {answer!r} is the letter of one choice and the text of another ({quoted(choices)})"
        raise SampleError(what, "write answer_is: letter, or answer_is: text")
    place = places.pop()
    mark = OWN.match(answer)
    if mark and mark[1].upper() in set(known(choices)) - {LETTERS[place]} and plain(answer) != plain(choices[place]):
        what = f"{where}: the answer {answer!r} has the letter of one choice and the text of another"
        raise SampleError(f"{what} ({quoted(choices)})", "write the letter or the text alone, or remove the line")
    return answer if expected(answer, choices) == place else LETTERS[place]


def _open(answer: str, reading: AnswerIs | None, where: str) -> str:
    """The answer to an open question, which is a text."""
    pattern = {None: LETTER, "letter": LETTER, "text": None}.get(reading, INDEX)
    if pattern is not None and pattern.fullmatch(answer):
        what = f"{where}: the answer {answer!r} names a choice, and the row has no choices"
        raise SampleError(
            what, "set answer_is: text if it is a text, or columns: {choices: NAME} if they stand elsewhere"
        )
    return answer


@dataclass
class _Fits:
    """Which readings fit all rows so far, and the first rows that tell readings apart.

    Attributes:
        rows: How many rows there are that at least one reading fits.
        whole: The readings that fit all of them.
        letter_or_text: Whether every answer is a letter or a text.
        differ: Two readings -> the first row in which they name different choices.
        unfit: Reading -> the first row that it does not fit.
    """

    rows: int = 0
    whole: tuple[AnswerIs, ...] = READINGS
    letter_or_text: bool = True
    differ: dict[tuple[AnswerIs, AnswerIs], int] = field(default_factory=dict)
    unfit: dict[AnswerIs, int] = field(default_factory=dict)

    def add(self, index: int, answers: Sequence[str], choices: Choices) -> None:
        """Count a row; one that no reading fits does not count."""
        mixed = self.letter_or_text and all(expected(answer, choices) is not None for answer in answers)
        places = {reading: [place_of(answer, choices, reading) for answer in answers] for reading in self.whole}
        fitting = {reading: found for reading, found in places.items() if None not in found}
        if not fitting and not mixed and not any(_fits(answers, choices, reading) for reading in READINGS):
            return
        self.rows += 1
        self.letter_or_text = mixed
        self.unfit |= {reading: index for reading in self.whole if reading not in fitting}
        self.whole = tuple(fitting)
        for pair in combinations(fitting, 2):
            if fitting[pair[0]] != fitting[pair[1]]:
                self.differ.setdefault(pair, index)


def _fits(answers: Sequence[str], choices: Choices, reading: AnswerIs) -> bool:
    return all(place_of(answer, choices, reading) is not None for answer in answers)


def guess(rows: Iterable[Asked], example: Callable[[int], tuple[str, Asked]]) -> AnswerIs | None:
    """What the answers of a table are. A few counters are held, and no row.

    Args:
        rows: What every row asks, in order.
        example: Index -> the place of a row in words, and what it asks.

    Returns:
        The reading that fits all rows; None if each row's answers are letters or texts, and not all are of one kind.

    Raises:
        ConfigError: Several readings fit all rows and name different choices, or none does.
    """
    fits = _Fits()
    for index, asked in enumerate(rows):
        if asked is not None and asked[0]:
            fits.add(index, *asked)
    pair = next((pair for pair in combinations(fits.whole, 2) if pair in fits.differ), None)
    if pair is not None:
        where, asked = example(fits.differ[pair])
        listing = " and ".join(fits.whole)
        raise ConfigError(f"answer_is: {listing} fit all rows; {where}: {_in_words(asked, fits.whole)}", FIX)
    if fits.rows and fits.whole:
        return fits.whole[0]
    if fits.letter_or_text:
        return None
    last = max(fits.unfit, key=lambda reading: fits.unfit[reading])
    where, asked = example(fits.unfit[last])
    raise ConfigError(
        f"answer_is: nothing fits all rows; {last} fits those before {where}: {_in_words(asked, ())}", FIX
    )


def _in_words(asked: Asked, readings: Sequence[AnswerIs]) -> str:
    """A row with the choice that its first answer names in some readings."""
    if asked is None:
        return "the row has changed"
    answers, choices = asked
    said = [f"as {reading} {_shown(place_of(answers[0], choices, reading), choices)}" for reading in readings]
    return f"the answer {answers[0]!r} to {quoted(choices)}" + (f" is {', '.join(said)}" if said else "")


def _shown(place: int | None, choices: Choices) -> str:
    return "none" if place is None else f"{LETTERS[place]}. {choices[place]}"
