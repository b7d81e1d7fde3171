"""The results folder: one JSON line per series and sample, written batch by batch.

A process that is killed at any moment loses at most the batch it was working on.
"""

import math
from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenprune.errors import OutputError
from tokenprune.output.lines import Row, json_ready, line, lines, parse
from tokenprune.output.run_folder import ANOTHER_FOLDER, RunFolder

#: Takes up rows of samples that cannot be used; see :meth:`Results.skip`.
Skip = Callable[[Sequence[Row]], None]
#: The file that says which series and samples the last run was about, and what its scores are.
RUN = "run.json"


def own_settings_unused(set_aside: Mapping[str, Any]) -> list[str]:
    """What a reader must know of a checkpoint's own settings of ``generate``; nothing if it has none.

    Args:
        set_aside: Those that answers do not use: name -> value.
    """
    if not set_aside:
        return []
    words = ", ".join(f"`{name}: {value}`" for name, value in set_aside.items())
    return [f"Answers do not use the checkpoint's own {words}; `generation` of the model would."]


class Flags:
    """The positions that were seen: one byte each."""

    def __init__(self) -> None:
        self.flags = bytearray()

    def set(self, position: int) -> bool:
        """Whether the position is new."""
        if position >= len(self.flags):
            self.flags.extend(bytes(position + 1 - len(self.flags)))
        new = not self.flags[position]
        self.flags[position] = 1
        return new

    def all(self, positions: Iterable[int]) -> bool:
        """Whether all of the positions were seen."""
        return all(position < len(self.flags) and self.flags[position] for position in positions)

    def any(self, start: int, end: int) -> bool:
        """Whether a position from ``start`` to ``end - 1`` was seen."""
        return any(self.flags[start:end])


class Results(RunFolder):
    """The files of one experiment; arguments and errors as for :class:`tokenprune.output.folder.OutputFolder`."""

    definitions = "series.json"

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.skipped = self.folder / "skipped.jsonl"

    def check_samples(self, fingerprints: Sequence[str] | None) -> None:
        """Check that the samples that were answered are still the same. More may have been added at the end.

        Args:
            fingerprints: One text per sample, which changes with the sample; None if the task has none.

        Raises:
            OutputError: A sample changed. Samples that could not be used may have been repaired.
        """
        stored = self.read_json("fingerprints.json") or []
        free = self.skipped_samples()
        for position, (old, new) in enumerate(zip(stored, json_ready(list(fingerprints or ())), strict=False)):
            if old != new and position not in free:
                raise OutputError(
                    f"sample {position + 1} of the data is another one than when {self.folder} was written",
                    ANOTHER_FOLDER,
                )

    def append(self, rows: Sequence[Row]) -> None:
        """Append the lines of a batch in one write and flush them to the disk.

        Raises:
            OutputError: The disk is full, or the folder cannot be written. What was complete stays complete.
        """
        self.append_rows(self.samples, rows)

    def skip(self, rows: Sequence[Row]) -> None:
        """Append samples that cannot be used: ``position``, ``error``, ``readable`` (only the model refuses it)."""
        self.append_rows(self.skipped, rows)

    def rows(self) -> Iterator[Row]:
        """All complete rows, one after the other."""
        return (row for row in self._lines() if row is not None)

    def _lines(self) -> Iterator[Row | None]:
        """A row for every line; None for an incomplete one."""
        return (parse(text, "series", "position") for text in lines(self.samples))

    def put_in_order(self, keys: Sequence[str], batch_size: int) -> None:
        """Put the rows in the order of one process, batch by batch and series by series, where workers wrote them.

        Rows of other series, which earlier runs left, come first. A row takes 24 bytes of memory: its place, its
        offset, its rank.

        Args:
            keys: The series, in their order.
            batch_size: Samples of a batch.
        """
        if not self.unordered.exists():
            return
        order = {key: number for number, key in enumerate(keys)}
        places, offsets = array("q"), array("q")
        for offset, row in self._located():
            number = order.get(row["series"])
            batch, within = divmod(row["position"], batch_size)
            places.append(-1 if number is None else (batch * len(keys) + number) * batch_size + within)
            offsets.append(offset)
        with self.samples.open("rb") as file, self.replacing(self.samples) as out:
            for index in np.argsort(np.frombuffer(places, dtype=np.int64), kind="stable"):
                file.seek(offsets[index])
                out.write(file.readline().decode())
        skipped = sorted(self.skipped_in_file(), key=lambda row: row["position"] // batch_size)
        if skipped:
            self.write(self.skipped.name, "".join(map(line, skipped)))
        self.unordered.unlink()

    def _located(self) -> Iterator[tuple[int, Row]]:
        """Every complete row, and where its line begins."""
        offset = 0
        with self.samples.open("rb") as file:
            for text in file:
                row = parse(text.decode(errors="replace"), "series", "position")
                if row is not None:
                    yield offset, row
                offset += len(text)

    def skipped_in_file(self) -> Iterator[Row]:
        """Rows of the samples that cannot be used, in the order of the file; see :meth:`skip`."""
        rows = (parse(text, "position", "error", "readable") for text in lines(self.skipped))
        return (row for row in rows if row is not None)

    def skipped_rows(self) -> list[Row]:
        """Rows of the samples that cannot be used, by position; see :meth:`skip`."""
        return sorted(self.skipped_in_file(), key=lambda row: row["position"])

    def skipped_samples(self) -> dict[int, str]:
        """Position of every sample that cannot be used -> why."""
        return {row["position"]: row["error"] for row in self.skipped_rows()}

    def forget_skipped(self, positions: Container[int]) -> None:
        """Remove the record of samples that can be used after all."""
        stored = self.skipped_rows()
        kept = [row for row in stored if row["position"] not in positions]
        if len(kept) < len(stored):
            self.write(self.skipped.name, "".join(map(line, kept)))

    def recover(self, count: int, batch_size: int, redo: Container[int] = ()) -> set[tuple[str, int]]:
        """Remove incomplete lines and incomplete batches from the file.

        Args:
            count: Samples of the experiment, from position 0. Rows of later samples, from a run without a limit, stay.
            batch_size: Samples per batch.
            redo: Numbers of batches that count as incomplete.

        Returns:
            (series key, batch number) of every complete batch.
        """
        done, broken = self.complete(count, batch_size, redo)
        if broken:
            last = math.ceil(count / batch_size)
            self._rewrite(lambda key, number: number >= last or (key, number) in done, batch_size)
        return done

    def complete(
        self, count: int, batch_size: int, redo: Container[int] = (), skipped: Container[int] | None = None
    ) -> tuple[set[tuple[str, int]], bool]:
        """Find complete batches without changing the file.

        Args:
            count: See :meth:`recover`.
            batch_size: See :meth:`recover`.
            redo: See :meth:`recover`.
            skipped: Positions that are not answered; those of the folder by default.

        Returns:
            (series key, batch number) of every complete batch, and whether damaged lines or incomplete batches remain.
        """
        seen: dict[str, Flags] = {}
        broken = False
        for row in self._lines():
            if row is None:
                broken = True
            else:
                broken |= not seen.setdefault(row["series"], Flags()).set(row["position"])
        skipped = set(self.skipped_samples()) if skipped is None else skipped
        done: set[tuple[str, int]] = set()
        for number in range(math.ceil(count / batch_size)):
            start, end = number * batch_size, (number + 1) * batch_size
            wanted = [position for position in range(start, min(end, count)) if position not in skipped]
            for key, flags in seen.items():
                if wanted and number not in redo and flags.all(wanted):
                    done.add((key, number))
                else:
                    broken |= flags.any(start, end)
        return done, broken

    def _rewrite(self, keep: Callable[[str, int], bool], batch_size: int) -> None:
        """Write the rows of the batches to keep again, each row once."""
        written: dict[str, Flags] = {}
        with self.replacing(self.samples) as file:
            for row in self.rows():
                new = written.setdefault(row["series"], Flags()).set(row["position"])
                if new and keep(row["series"], row["position"] // batch_size):
                    file.write(line(row))
