"""The results folder: one JSON line per series and sample, written batch by batch.

A process that is killed at any moment loses at most the batch it was working on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tokenprune.errors import OutputError


class Results:
    """The files of one experiment.

    Args:
        folder: The folder of the files; created if it does not exist.

    Raises:
        OutputError: The folder cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.samples = self.folder / "samples.jsonl"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / ".probe"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OutputError(
                f"output folder {self.folder} cannot be written ({error.strerror})", "choose another"
            ) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder inside the block. The lock of a process that no longer runs is ignored.

        Raises:
            OutputError: Another process writes to the folder.
        """
        path = self.folder / ".lock"
        while True:
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                break
            except FileExistsError:
                owner = self._owner(path)
                if owner is not None:
                    raise OutputError(
                        f"{self.folder} is being written by process {owner}",
                        "wait for it, or choose another output folder",
                    ) from None
                path.unlink(missing_ok=True)
        try:
            os.write(handle, str(os.getpid()).encode())
            os.close(handle)
            yield
        finally:
            path.unlink(missing_ok=True)

    @staticmethod
    def _owner(path: Path) -> int | None:
        """Id of another, running process that holds the lock."""
        try:
            owner = int(path.read_text())
            os.kill(owner, 0)
        except (OSError, ValueError):
            return None
        return None if owner == os.getpid() else owner

    def claim(self, config: str, series: Mapping[str, Any]) -> None:
        """Reserve the folder for a configuration. A configuration that only adds or removes series may continue it.

        Args:
            config: The resolved configuration as YAML.
            series: Definition of every series, JSON-ready, by key.

        Raises:
            OutputError: The folder holds results of another configuration, or of a series with another definition.
                The message names what differs.
        """
        path = self.folder / "config.yaml"
        if path.is_file():
            stored = _lines_that_must_match(path.read_text(encoding="utf-8"))
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
            if stored_series.get(key, definition) != definition:
                raise OutputError(
                    f"{self.folder} holds results of {key!r} with another definition",
                    "give the method another label, choose another output folder, or delete that one",
                )
        self.write("series.json", json.dumps({**stored_series, **series}, indent=1))
        self.write("config.yaml", config)

    def write(self, name: str, text: str) -> Path:
        """Write a file atomically: a reader sees the old text or the new one."""
        path = self.folder / name
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
        return path

    def read_json(self, name: str) -> Any:
        """The content of a JSON file, or None if the file is missing or broken."""
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append the lines of a batch in one write and flush them to the disk."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        with self.samples.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """All complete rows."""
        if not self.samples.is_file():
            return []
        rows = []
        for line in self.samples.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the incomplete last line of a killed run
            if isinstance(row, dict) and "series" in row:
                rows.append(row)
        return rows

    def recover(self, batches: Sequence[Sequence[str]]) -> set[tuple[str, int]]:
        """Remove incomplete lines and incomplete batches from the file.

        Args:
            batches: Sample ids per batch.

        Returns:
            (series key, batch number) of every complete batch.
        """
        batch_of = {sample: number for number, batch in enumerate(batches) for sample in batch}
        stored: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}  # (series, batch) -> sample -> row
        for row in self.rows():
            if row["sample"] in batch_of:
                stored.setdefault((row["series"], batch_of[row["sample"]]), {}).setdefault(row["sample"], row)
        done = {key for key, by_sample in stored.items() if len(by_sample) == len(batches[key[1]])}
        complete = [row for key, by_sample in stored.items() if key in done for row in by_sample.values()]
        text = "".join(json.dumps(row) + "\n" for row in complete)
        if self.samples.is_file() and self.samples.read_text(encoding="utf-8", errors="replace") != text:
            self.write(self.samples.name, text)
        return done


def _lines_that_must_match(config: str) -> list[str]:
    """The lines of a configuration that must be equal for its results to be comparable."""
    free = ("requires", "methods", "budgets", "oracle", "output")
    fields = {name: value for name, value in yaml.safe_load(config).items() if name not in free}
    return yaml.safe_dump(fields, sort_keys=False).splitlines()
