"""The samples of the task ``vqa``: a row is read, and its pictures are decoded, when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from tokenprune.datasets.base import Table
from tokenprune.datasets.clips import Clip, clips
from tokenprune.datasets.columns import Role, row_id
from tokenprune.datasets.history import read_history
from tokenprune.datasets.media import source
from tokenprune.datasets.picture import read_image
from tokenprune.datasets.values import text, texts
from tokenprune.errors import SampleError
from tokenprune.metrics.multiple_choice import LETTERS, expected
from tokenprune.tasks.base import Sample, Video


@dataclass(frozen=True)
class Reading:
    """The settings with which rows become samples.

    Attributes:
        columns: The column of each role that the table has.
        folder: Where relative paths start.
        question: The question of rows that have none.
        instruction: A text that follows every question on a line of its own.
        frames: Frames per video.
        frame_rate: Pictures per second of a clip that is a list of pictures.
        min_references: How many answers a row needs; 0 if answers are not read.
    """

    columns: Mapping[Role, str]
    folder: Path
    question: str
    instruction: str
    frames: int
    frame_rate: float
    min_references: int


class VqaSamples(Sequence[Sample]):
    """The samples of a table. The last one is kept, and no other.

    ``samples[i]`` raises :class:`~tokenprune.errors.SampleError` where row i cannot be read.
    """

    def __init__(self, table: Table, reading: Reading) -> None:
        self._table = table
        self._reading = reading
        self._last: tuple[int, Sample] | None = None

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        if self._last is None or self._last[0] != place:
            self._last = place, self._read(place)
        return self._last[1]

    def _read(self, index: int) -> Sample:
        where = self._table.where(index)
        row = self._table.row(index)
        question, choices = self._question(row, where), self._list(row, "choices", where)
        if len(choices) > len(LETTERS):
            raise SampleError(f"{where}: {len(choices)} choices", f"at most {len(LETTERS)} have a letter")
        answers = self._answers(row, choices, where)
        images = [source(value, self._reading.folder, where) for value in self._files(row, "image", "images")]
        videos = clips(self._clips(row), self._reading.folder, where)
        if not images and not videos:
            raise SampleError(f"{where}: no image and no video", "write the path of a file")
        return Sample(
            id=row_id(self._table, index, self._value(row, "id")),
            images=tuple(read_image(item, where) for item in images),
            question=question,
            answer=answers[0] if answers else "",
            type=text(self._value(row, "type"), "type", where) or "all",
            group="|".join([*(item.key for item in images), *(clip.key for clip in videos)]),
            answers=answers,
            choices=choices,
            videos=tuple(self._video(item, where) for item in videos),
            history=read_history(self._value(row, "history"), where),
            system=text(self._value(row, "system"), "system", where),
        )

    def _question(self, row: Mapping[str, object], where: str) -> str:
        question = text(self._value(row, "question"), "question", where) or self._reading.question
        if not question:
            raise SampleError(f"{where}: the question is empty", "write one, or remove the line")
        choices = self._list(row, "choices", where)
        options = [f"{letter}. {option}" for letter, option in zip(LETTERS, choices, strict=False)]
        return "\n".join([question, *options, *filter(None, [self._reading.instruction])])

    def _answers(self, row: Mapping[str, object], choices: Sequence[str], where: str) -> tuple[str, ...]:
        if not self._reading.min_references:
            return ()
        several = self._list(row, "answers", where)
        value = self._value(row, "answer")
        # a field `answer` may hold a list, too; a cell of that name is one answer, whatever characters it has
        answers = several or texts(value if isinstance(value, list) else [value], "answer", where)
        if len(answers) < self._reading.min_references:
            needed = self._reading.min_references
            given = f"{len(answers)} answers, and the metric needs {needed}" if answers else "no answer"
            raise SampleError(f"{where}: {given}", "write them, remove the line, or choose another metric")
        for answer in answers if choices else ():
            if expected(answer, choices) is None:
                letters = f"A to {LETTERS[len(choices) - 1]}"
                raise SampleError(
                    f"{where}: the answer {answer!r} is no choice", f"write {letters}, or a choice's text"
                )
        return answers

    def _video(self, item: Clip, where: str) -> Video:
        return Video(*item.read(self._reading.frames, self._reading.frame_rate, where))

    def _clips(self, row: Mapping[str, object]) -> Sequence[object]:
        value = self._value(row, "video")
        return () if value is None else self._table.items(value)

    def _value(self, row: Mapping[str, object], role: Role) -> object:
        column = self._reading.columns.get(role)
        return None if column is None else row.get(column)

    def _list(self, row: Mapping[str, object], role: Role, where: str) -> tuple[str, ...]:
        value = self._value(row, role)
        return () if value is None else texts(self._table.items(value), role, where)

    def _files(self, row: Mapping[str, object], one: Role, several: Role | None = None) -> list[object]:
        value = self._value(row, one)
        files = list(value) if isinstance(value, list) else [value]
        if several is not None and (more := self._value(row, several)) is not None:
            files += self._table.items(more)
        return [file for file in files if file not in (None, "")]
