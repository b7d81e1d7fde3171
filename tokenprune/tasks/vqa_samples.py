"""The samples of the task ``vqa``: a row is read, and its pictures are decoded, when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import overload

from tokenprune.datasets.base import Table
from tokenprune.datasets.clips import Clip, clips
from tokenprune.datasets.columns import Role, row_id
from tokenprune.datasets.history import read_history
from tokenprune.datasets.lists import entries
from tokenprune.datasets.media import Source, source
from tokenprune.datasets.picture import read_image
from tokenprune.datasets.values import missing, text
from tokenprune.errors import SampleError
from tokenprune.tasks.base import Sample, Video
from tokenprune.tasks.reading import ASKED, Reading


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
