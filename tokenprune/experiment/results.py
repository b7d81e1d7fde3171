"""The results folder: one JSON line per series and sample, written batch by batch.

A process that is killed at any moment loses at most the batch it was working on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tokenprune.errors import OutputError
from tokenprune.files.folder import OutputFolder
from tokenprune.files.lines import Row, json_ready, line, lines, parse
from tokenprune.fingerprint.definition import what_differs
from tokenprune.fingerprint.origin import ORIGIN, Origin

#: The file that says which series and samples the last run was about, and what its scores are.
RUN = "run.json"


class Flags:
    """Which positions were seen: one byte each."""

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


class Results(OutputFolder):
    """The files of one experiment; arguments and errors as for :class:`tokenprune.files.folder.OutputFolder`."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.skipped = self.folder / "skipped.jsonl"

    def check(self, config: str, series: Mapping[str, Any]) -> None:
        """Check that a configuration may write to the folder. One that only adds or removes series may continue it.

        Args:
            config: The resolved configuration as YAML.
            series: Definition of every series, JSON-ready, by key.

        Raises:
            OutputError: The folder holds results of another configuration, or of a series with another definition.
                The message names what differs.
        """
        path = self.folder / "config.yaml"
        if path.is_file():
            try:
                stored = _lines_that_must_match(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, AttributeError, yaml.YAMLError):
                raise OutputError(
                    f"{path} is damaged, so it is unknown what the results in its folder belong to",
                    "repair the file, choose another output folder, or delete that one",
                ) from None
            current = _lines_that_must_match(config)
            pairs = zip([*stored, ""], [*current, ""], strict=False)
            difference = next(((old, new) for old, new in pairs if old != new), None)
            if difference:
                raise OutputError(
                    f"{self.folder} holds results of another configuration"
                    f" ({difference[0].strip()!r} there, {difference[1].strip()!r} now)",
                    "choose another output folder, or delete that one",
                )
        stored_series = self.read_json("series.json") or {}
        for key, definition in series.items():
            what = what_differs(stored_series.get(key, definition), definition)
            if what is not None:
                raise OutputError(
                    f"{self.folder} holds results of {key!r} with {what}",
                    "give the method another label, choose another output folder, or delete that one",
                )

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
                    "choose another output folder, or delete that one",
                )

    @property
    def claimed(self) -> bool:
        """Whether the folder belongs to an experiment."""
        return (self.folder / "config.yaml").is_file()

    def check_code(self, code: Mapping[str, str | None]) -> None:
        """Check that the code of model, task and metrics is that which the answers were made with, as far as known.

        Raises:
            OutputError: It is not.
        """
        if self.claimed:
            Origin.read(self.read_json(ORIGIN)).refuse(Origin(code=code), self.folder)

    def check_origin(self, origin: Origin) -> None:
        """The same for the model's weights, too; see :meth:`Origin.check`. A new folder has none to compare with."""
        if self.claimed:
            origin.check(self.folder, self.read_json(ORIGIN))

    def claim(self, config: str, series: Mapping[str, Any], origin: Origin) -> None:
        """Reserve the folder for a configuration and an origin that were accepted.

        The origin is written once: what was unknown of the first answers does not become known by later ones.
        """
        if not self.claimed:
            origin.announce(self.folder)
            self.write_json(ORIGIN, origin.stored())
        stored_series = self.read_json("series.json") or {}
        self.write_json("series.json", {**stored_series, **series, **stored_series})
        self.write("config.yaml", config)

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

    def skipped_rows(self) -> list[Row]:
        """What :meth:`skip` wrote, by position."""
        rows = (parse(text, "position", "error", "readable") for text in lines(self.skipped))
        return sorted((row for row in rows if row is not None), key=lambda row: row["position"])

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

    def complete(self, count: int, batch_size: int, redo: Container[int] = ()) -> tuple[set[tuple[str, int]], bool]:
        """What :meth:`recover` returns, and whether there is something that it would remove. Nothing is changed."""
        seen: dict[str, Flags] = {}
        broken = False
        for row in self._lines():
            if row is None:
                broken = True
            else:
                broken |= not seen.setdefault(row["series"], Flags()).set(row["position"])
        skipped = set(self.skipped_samples())
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


def _lines_that_must_match(config: str) -> list[str]:
    """The lines of a configuration that must be equal for its results to be comparable."""
    free = ("requires", "methods", "budgets", "oracle", "output", "strict", "examples")
    fields = {name: value for name, value in yaml.safe_load(config).items() if name not in free}
    return yaml.safe_dump(fields, sort_keys=False).splitlines()
