"""The task ``vqa``: questions about pictures and videos in a file, a folder or a dataset of the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Self, overload

from pydantic import Field

from tokenprune.core.component import FromRegistry
from tokenprune.datasets.base import Table
from tokenprune.datasets.clips import Clip, clips
from tokenprune.datasets.columns import (
    ANSWERS,
    PICTURES,
    Columns,
    Role,
    check_unique,
    find_columns,
    misspelt,
    near,
    row_id,
)
from tokenprune.datasets.conversations import conversations
from tokenprune.datasets.history import read_history
from tokenprune.datasets.lists import entries
from tokenprune.datasets.media import Source, source
from tokenprune.datasets.open import open_table
from tokenprune.datasets.picture import read_image
from tokenprune.datasets.values import missing, text
from tokenprune.errors import ConfigError, SampleError
from tokenprune.metrics.agreement import Agreement
from tokenprune.metrics.base import Metric
from tokenprune.metrics.exact_match import ExactMatch
from tokenprune.metrics.multiple_choice import MultipleChoice
from tokenprune.tasks.answer_is import AnswerIs
from tokenprune.tasks.base import Sample, Task, Video
from tokenprune.tasks.reading import ASKED, Reading, guessed


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

    def check(self, index: int) -> Sample:
        """A row without its pictures: its texts are read, and its files exist.

        Raises:
            SampleError: The row cannot be read.
        """
        return self._asked(index)[0]

    def where(self, index: int) -> str:
        """The place of a row, for messages."""
        return self._table.where(index)

    def _read(self, index: int) -> Sample:
        where = self._table.where(index)
        made, images, videos = self._asked(index)
        return replace(
            made,
            images=tuple(read_image(item, where) for item in images),
            videos=tuple(self._video(item, where) for item in videos),
        )

    def _asked(self, index: int) -> tuple[Sample, list[Source], list[Clip]]:
        """A row without its pictures and videos, and where these are."""
        where = self._table.where(index)
        row = self._table.row(index)
        reading = self._reading
        answers, choices = reading.asked({role: reading.value(row, role) for role in ASKED}, where)
        answers = reading.canonical(answers, choices, where)
        images = [source(value, reading.folder, where) for value in self._files(row, where, "image", "images")]
        videos = clips(entries(reading.value(row, "video"), reading.split, "video", where), reading.folder, where)
        if not images and not videos:
            raise SampleError(f"{where}: no image and no video", "write the path of a file")
        sample = Sample(
            id=row_id(self._table, index, reading.value(row, "id")),
            images=(),
            question=reading.question_of(row, choices, len(images) + len(videos), where),
            answer=answers[0] if answers else "",
            type=text(reading.value(row, "type"), "type", where) or "all",
            group="|".join([*(item.key for item in images), *(clip.key for clip in videos)]),
            answers=answers,
            choices=choices,
            history=read_history(reading.value(row, "history"), where),
            system=text(reading.value(row, "system"), "system", where),
        )
        return sample, images, videos

    def _video(self, item: Clip, where: str) -> Video:
        return Video(*item.read(self._reading.frames, self._reading.frame_rate, where))

    def _files(self, row: Mapping[str, object], where: str, one: Role, several: Role | None = None) -> list[object]:
        value = self._reading.value(row, one)
        files = list(value) if isinstance(value, list) else [value]
        if several is not None:
            files += entries(self._reading.value(row, several), self._reading.split, several, where)
        return [file for file in files if not missing(file)]


class Vqa(Task):
    """Questions of your own: JSON, JSONL, CSV, TSV or Parquet, a folder of pictures, or a dataset of Hugging Face.

    Rows are read when they are asked for, so memory does not grow with the data apart from 16 bytes a line.

    Attributes:
        data: The file, the folder, or the dataset's name or local folder.
        columns: The columns of roles, where they do not have the role's name: ``image``, ``images``, ``video``,
            ``question``, ``answer``, ``answers``, ``choices``, ``id``, ``type``, ``history``, ``system``,
            ``conversation``. null: the role has no column. A list of columns for ``choices`` (by default A, B, C ... if
            there is no column of that name), for ``images``, and for the parts of ``question``.
        answer_is: What the answers of rows with choices are: ``letter``, ``text``, ``index0`` (an index from 0) or
            ``index1`` (from 1). By default what fits all rows; an error if that is not clear.
        split: The split of a dataset.
        config: The configuration of a dataset.
        images: The folder in which relative paths start; by default the file's own.
        question: The question of rows without one, e.g. in a folder of pictures alone.
        instruction: A text that follows every question on a line of its own, e.g. "Answer with a single word."
        metric: The score of answers. By default agreement with the unpruned model if there are no answers, multiple
            choice if there are choices, and exact match otherwise.
        frames: The number of frames that are taken from a video, at even distances.
        frame_rate: Pictures per second of a clip that is a list of pictures: they do not say when they were taken.
    """

    data: str = Field(min_length=1)
    columns: dict[Role, str | Annotated[tuple[str, ...], Field(min_length=1)] | None] = Field(default_factory=dict)
    answer_is: AnswerIs | None = None
    split: str | None = None
    config: str | None = None
    images: str | None = None
    question: str = ""
    instruction: str = ""
    metric: Annotated[Metric, FromRegistry("metrics")] | None = None
    frames: int = Field(default=8, ge=1)
    frame_rate: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    @property
    def label_free(self) -> bool:
        """Whether the metric needs no answers."""
        return not self._opened.min_references

    def samples(self) -> Sequence[Sample]:
        """The samples, in the order of the data.

        Raises:
            ConfigError: The data cannot be read, a column is missing, or the metric does not fit the data.
            MissingDataError: The data, or a package that reads them, is missing.
        """
        return self._opened.samples

    def fingerprints(self) -> Sequence[str]:
        """A hash of what every row says. Pictures count by their names; those inside Parquet and datasets do not."""
        return self._opened.fingerprints()

    def remarks(self) -> Sequence[str]:
        """Which columns are read as what, what answers are, and the metric."""
        return self._opened.remarks()

    def used_metrics(self) -> Sequence[Metric]:
        """The metric, or the one that is used by default."""
        return [self._opened.metric]

    def score(self, sample: Sample, text: str) -> float:
        """The metric of the text as an answer to the sample."""
        return self._opened.metric.score(text, sample.references, sample.choices) if sample.references else 0.0

    @cached_property
    def _opened(self) -> Opened:
        return Opened(self)

    def __copy__(self) -> Self:
        """A copy opens its data itself: ``model_copy(update=...)`` may have named others."""
        copied = super().__copy__()
        copied.__dict__.pop("_opened", None)
        return copied


class Opened:
    """The data of a task, opened and checked.

    Attributes:
        metric: The metric that is used.
        min_references: How many answers it needs.
        reading: How rows are read.
        samples: The samples.
    """

    def __init__(self, task: Vqa) -> None:
        table = conversations(open_table(task.data, task.split, task.config), task.columns)
        columns = find_columns(table, task.columns)
        if "question" not in columns and not task.question:
            what = f"columns: {table.name} has no column 'question'"
            raise ConfigError(
                what, f"write columns: {{question: NAME}}, or one `question` for all; {near('question', table)}"
            )
        self.metric = choose_metric(task.metric, table, columns)
        self.min_references = type(self.metric).min_references
        if "id" in columns:
            check_unique(table, *columns["id"])
        folder = table.folder if task.images is None else Path(task.images).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"images: there is no folder {str(folder)!r}", "relative paths of images start there")
        self._table, self._columns = table, columns
        question, instruction = task.question.strip(), task.instruction.strip()
        reading = Reading(
            columns,
            table.items,
            folder,
            question,
            instruction,
            task.frames,
            task.frame_rate,
            self.min_references,
            task.answer_is,
        )
        self._guessed = task.answer_is is None
        if not self._guessed and "choices" not in columns:
            what = f"answer_is: {table.name} has no column 'choices'"
            raise ConfigError(what, f"remove it, or write columns: {{choices: NAME}}; {near('choices', table)}")
        self.reading = guessed(table, reading) if self._guessed else reading
        self.samples = VqaSamples(table, self.reading)

    def remarks(self) -> list[str]:
        """What the columns hold, which are not used, what answers are, and the metric."""
        made = self._table.made
        used = [
            f"{role}: {', '.join(dict.fromkeys(made.get(name, name) for name in names))}"
            for role, names in self._columns.items()
        ]
        read = {name for names in self._columns.values() for name in names} | {*made.values()}
        rest = [name for name in self._table.columns if name not in read]
        said = [f"columns: {'; '.join(used)}" + (f". Not used: {', '.join(rest)}" if rest else "")]
        said.append(f"metric: {FromRegistry('metrics').dump(self.metric)['name']}")
        if "choices" in self._columns and self.min_references:
            found = self.reading.answer_is or "letter or text, whichever each answer is"
            said.append(f"answer_is: {found}" + (" (found in the data)" if self._guessed else ""))
        return said

    def fingerprints(self) -> list[str]:
        """16 hexadecimal digits per row."""
        roles = [role for role in self._columns if self._table.names_files or role not in PICTURES]
        columns = [self._table.values(name) for role in roles for name in self._columns[role]]
        if not columns:
            return [""] * len(self._table)
        return [blake2b(repr(row).encode(), digest_size=8).hexdigest() for row in zip(*columns, strict=True)]


def choose_metric(metric: Metric | None, table: Table, columns: Columns) -> Metric:
    """The metric, or the default one for these columns.

    Raises:
        ConfigError: The metric needs answers or choices that the table lacks, or a column may be a misspelt ``answer``.
    """
    answered = any(role in columns for role in ANSWERS)
    if metric is None and not answered:
        wrong = misspelt("answer", table) or misspelt("answers", table)
        if wrong is not None:
            what = f"columns: {table.name} has no column 'answer', but {wrong!r}"
            raise ConfigError(what, f"write columns: {{answer: {wrong}}}, or metric: agreement to go without answers")
        return Agreement()
    if metric is None:
        return MultipleChoice() if "choices" in columns else ExactMatch()
    if type(metric).min_references and not answered:
        what = f"metric: it compares with answers, and {table.name} has no column 'answer' or 'answers'"
        raise ConfigError(what, f"write columns: {{answer: NAME}}, or use metric: agreement; {near('answer', table)}")
    if metric == MultipleChoice() and "choices" not in columns:
        what = f"metric: multiple_choice needs choices, and {table.name} has no column 'choices', and no A and B"
        raise ConfigError(what, f"write columns: {{choices: NAME}} or {{choices: [A, B]}}; {near('choices', table)}")
    return metric
