"""The choices of a row. A letter belongs to a place, a column or a key: a choice that is missing leaves a gap."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenprune.datasets.lists import listed
from tokenprune.datasets.values import missing, short, text, written
from tokenprune.errors import SampleError
from tokenprune.metrics.multiple_choice import LETTERS, present

#: A letter that a choice brings along: "A. x", "(A) x", "a) x", "A: x", "A.x", "[A] x", "A - x", "**A.** x".
OWN = re.compile(r"[(\[*]*([A-Za-z])(?:[)\].:*\u3001\uff0e]+\s*|\s+[-\u2013]\s+)")
HOW = (
    'write a list: ["one", "two"]; or set columns: {choices: NAME}, or {choices: [A, B, C]} for a column each,'
    " or {choices: null} to ask without"
)


def read_choices(value: object, split: Callable[[object], Sequence[object]], where: str) -> tuple[str, ...]:
    """The choices of a row, each at the place of its letter; an empty text where one is missing.

    Missing choices at the end are none. Letters that all choices bring along, each that of its place, are taken off.

    Args:
        value: A list, a text that writes one, a mapping of letters to choices, or one with ``label`` and ``text``.
        split: The entries of a text that is no list in Python's or JSON's form.
        where: The row, for messages.

    Returns:
        The choices; none if all are missing.

    Raises:
        SampleError: The value is none of these, or holds one choice, or more than there are letters.
    """
    if isinstance(value, str):
        read = listed(value, "choices", where)
        value = split(value) if read is None else read
    entries = value if isinstance(value, dict | list | tuple) else () if missing(value) else split(value)
    choices = [text(entry, "choices", where) for entry in _by_label(entries, where)]
    return _without_own_letters(_checked(choices, where), where)


def _checked(choices: list[str], where: str) -> tuple[str, ...]:
    """The choices without missing ones at the end.

    Raises:
        SampleError: There is only one, or there are more than there are letters.
    """
    while choices and not choices[-1]:
        choices.pop()
    if len(choices) > len(LETTERS):
        raise SampleError(f"{where}: {len(choices)} choices", f"at most {len(LETTERS)} have a letter")
    if len(present(choices)) == 1:
        raise SampleError(f"{where}: choices holds only one: {short(choices[-1])}", HOW)
    return tuple(choices)


def _by_label(value: Mapping[str, Any] | Sequence[Any], where: str) -> Sequence[object]:
    """The entries of a value at the places of their labels, where it has labels."""
    if isinstance(value, Mapping) and value.keys() == {"label", "text"}:
        labels, entries = value["label"], value["text"]
        if not isinstance(labels, list) or not isinstance(entries, list) or len(labels) != len(entries):
            raise _wrong(value, where)
        return _placed(labels, entries, where)
    if isinstance(value, Mapping):
        return _placed(list(value), list(value.values()), where)
    if value and all(isinstance(entry, dict) and {"label", "text"} <= entry.keys() for entry in value):
        return _placed([entry["label"] for entry in value], [entry["text"] for entry in value], where)
    return value


def _placed(labels: Sequence[object], entries: Sequence[object], where: str) -> Sequence[object]:
    """The entries at the places of their labels: letters, or numbers that count them from 0 or 1.

    Raises:
        SampleError: The labels are neither, or one stands twice.
    """
    names = [(written(label) or "").strip("().:").upper() for label in labels]
    if any(names == [str(start + place) for place in range(len(names))] for start in (0, 1)):
        return entries
    if len(set(names)) < len(names) or not all(len(name) == 1 and name in LETTERS for name in names):
        raise _wrong(dict(zip(map(str, labels), entries, strict=True)), where)
    at = dict(zip(names, entries, strict=True))
    return [at.get(letter) for letter in LETTERS]


def _wrong(value: object, where: str) -> SampleError:
    what = f"{where}: choices are of the type {type(value).__name__}: {short(value)}"
    return SampleError(what, """write {"A": "one", "B": "two"}, {"label": [...], "text": [...]} or a list of texts""")


def _without_own_letters(choices: Sequence[str], where: str) -> tuple[str, ...]:
    """The choices without letters of their own. One that is nothing but the letter of its place is missing.

    Raises:
        SampleError: All bring letters along that are not those of their places: other letters in their order, or those
            of other choices. Initials of names in any other order are no such letters.
    """
    marks = {place: OWN.match(choice) for place, choice in present(choices).items()}
    own = [mark[1].upper() for mark in marks.values() if mark]
    if not marks or len(own) < len(marks):
        return tuple(choices)
    if own == [LETTERS[place] for place in marks]:
        rest = [choice[mark.end() :] if (mark := marks.get(place)) else "" for place, choice in enumerate(choices)]
        return _checked(rest, where)
    if own == sorted(set(own)) or set(own) <= set(LETTERS[: len(choices)]):
        given = ", ".join(map(short, present(choices).values()))
        what = f"{where}: the choices bring letters along that are not those of their places: {given}"
        raise SampleError(what, 'write {"A": "one", "C": "three"}, or an empty text where a choice is missing')
    return tuple(choices)


def shown(choices: Sequence[str]) -> list[str]:
    """The choices as the question shows them, each with its letter: ``B. two``."""
    return [f"{LETTERS[place]}. {choice}" for place, choice in present(choices).items()]


def quoted(choices: Sequence[str]) -> str:
    """The choices for a message."""
    return ", ".join(map(repr, shown(choices)))
