"""How the rows of a table are read: which column holds what, and what an answer is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokenprune.datasets import columns
from tokenprune.datasets.base import Table
from tokenprune.datasets.columns import Columns, Role
from tokenprune.datasets.lists import OF_TEXTS, entries, listed
from tokenprune.datasets.turns import without_places
from tokenprune.datasets.values import texts
from tokenprune.errors import SampleError
from tokenprune.metrics.multiple_choice import plain
from tokenprune.tasks.answer_is import AnswerIs, Asked, canonical, guess
from tokenprune.tasks.options import read_choices, shown

#: What decides whether an answer is right.
ASKED: tuple[Role, ...] = ("choices", "answers", "answer")


@dataclass(frozen=True)
class Reading:
    """The settings with which rows become samples.

    Attributes:
        columns: The columns of each role that the table has.
        split: The entries of a value that may be a list, as the table's format writes it.
        folder: Where relative paths start.
        question: The question of rows that have none.
        instruction: A text that follows every question on a line of its own.
        frames: Frames per video.
        frame_rate: Pictures per second of a clip that is a list of pictures.
        min_references: How many answers a row needs; 0 if answers are not read.
        answer_is: What the answers of rows with choices are; None for letters and texts, whichever each answer is.
    """

    columns: Columns
    split: Callable[[object], Sequence[object]]
    folder: Path
    question: str
    instruction: str
    frames: int
    frame_rate: float
    min_references: int
    answer_is: AnswerIs | None = None

    def value(self, row: Mapping[str, object], role: Role) -> object:
        """The value of a role in a row, or the list of those of its columns; None where it has no column."""
        return columns.value(row, self.columns.get(role, ()))

    def question_of(self, row: Mapping[str, object], choices: Sequence[str], pictures: int, where: str) -> str:
        """The question as it is asked: its parts, the choices with their letters, the instruction; a line for each.

        Args:
            row: The row.
            choices: Its choices.
            pictures: How many pictures and videos it has: ``<image>`` before or behind the question is taken off.
            where: The row, for messages.

        Raises:
            SampleError: There is none, it is no text, or ``<image>`` stands elsewhere or too often.
        """
        given = self.value(row, "question")
        parts = given if len(self.columns.get("question", ())) > 1 and isinstance(given, list) else [given]
        question = without_places("\n".join(texts(parts, "question", where)), [pictures], where) or self.question
        if not question:
            fix = "write one, or remove the line; `question` of the task is that of rows without one"
            raise SampleError(f"{where}: the question is empty", fix)
        return "\n".join([question, *shown(choices), *filter(None, [self.instruction])])

    def asked(self, given: Mapping[Role, object], where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The expected answers of a row as it writes them, and its choices.

        Args:
            given: The values of ``answers``, ``answer`` and ``choices``.
            where: The row, for messages.

        Raises:
            SampleError: They cannot be read, or there are too few answers.
        """
        choices = read_choices(given.get("choices"), self.split, where)
        return self._answers(given, where) if self.min_references else (), choices

    def _answers(self, given: Mapping[Role, object], where: str) -> tuple[str, ...]:
        """All of ``answers``, or else ``answer``.

        A field ``answer`` may hold a list, too. A text of that name is one answer, unless it writes a list of texts:
        "a|b" and "[1, 2]" are answers.
        """
        one = given.get("answer")
        if isinstance(one, str) and OF_TEXTS.match(one.strip()):
            one = listed(one, "answer", where) or one
        found = texts(entries(given.get("answers"), self.split, "answers", where), "answers", where)
        single = texts([one], "answer", where) if found and isinstance(one, str | int) else ()
        if single and not {plain(text) for text in single} & {plain(text) for text in found}:
            what = f"{where}: the answer {single[0]!r} is not among the answers {', '.join(map(repr, found))}"
            raise SampleError(what, "correct it, or set columns: {answer: null} or columns: {answers: null}")
        found = found or texts(one if isinstance(one, list) else [one], "answer", where)
        if len(found) < self.min_references:
            needed = self.min_references
            what = f"{len(found)} answers, and the metric needs {needed}" if found else "no answer"
            raise SampleError(f"{where}: {what}", "write them, remove the line, or choose another metric")
        return found

    def canonical(self, answers: Sequence[str], choices: Sequence[str], where: str) -> tuple[str, ...]:
        """The answers as metrics take them, see :func:`tokenprune.tasks.answer_is.canonical`."""
        if "choices" not in self.columns:
            return tuple(answers)
        return tuple(canonical(answer, choices, self.answer_is, where) for answer in answers)


def guessed(table: Table, reading: Reading) -> Reading:
    """The reading with what the answers are, found in all rows; no picture is read.

    Raises:
        ConfigError: That cannot be known.
    """
    roles = [role for role in ASKED if role in reading.columns]
    if len(roles) < 2 or "choices" not in roles or not reading.min_references:
        return reading

    def asked(given: Mapping[Role, object]) -> Asked:
        try:
            answers, choices = reading.asked(given, "")
        except SampleError:
            return None
        return (answers, choices) if choices else None

    def example(index: int) -> tuple[str, Asked]:
        row = table.row(index)
        return table.where(index), asked({role: reading.value(row, role) for role in roles})

    rows = zip(*(columns.values(table, reading.columns[role]) for role in roles), strict=True)
    found = guess((asked(dict(zip(roles, row, strict=True))) for row in rows), example)
    return replace(reading, answer_is=found)
