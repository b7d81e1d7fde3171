"""The results folder: one JSON line per (series, sample), written batch by batch, safe against kills."""

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
        folder: Where they lie; made if it is not there.

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
        """Keep a second process out. The lock of a process that is gone does not count.

        Raises:
            OutputError: Another process is at work in the folder.
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
                        f"{self.folder} is being written by process {owner}", "wait for it, or choose another folder"
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
        try:
            owner = int(path.read_text())
            os.kill(owner, 0)
        except (OSError, ValueError):
            return None
        return None if owner == os.getpid() else owner

    def claim(self, config: str, series: Mapping[str, Any]) -> None:
        """Tie the folder to a configuration. One that only adds or removes series goes on with what is there.

        Args:
            config: The resolved configuration as YAML.
            series: Definition of every series, JSON-ready, by key.

        Raises:
            OutputError: It holds results of another one, or of a series that was defined otherwise; what differs is
                named.
        """
        path = self.folder / "config.yaml"
        if path.is_file():
            held = path.read_text(encoding="utf-8")
            pairs = zip([*_shared(held), ""], [*_shared(config), ""], strict=False)
            other = next(((a, b) for a, b in pairs if a != b), None)
            if other:
                raise OutputError(
                    f"{self.folder} holds results of another configuration"
                    f" ({other[0].strip()!r} there, {other[1].strip()!r} now)",
                    "choose another output folder, or delete that one",
                )
        known = self.read_json("series.json") or {}
        for key, definition in series.items():
            if known.get(key, definition) != definition:
                raise OutputError(
                    f"{self.folder} holds results of {key!r} with another definition",
                    "give the method another label, choose another output folder, or delete that one",
                )
        self.write("series.json", json.dumps({**known, **series}, indent=1))
        self.write("config.yaml", config)

    def write(self, name: str, text: str) -> Path:
        """Write a file whole or not at all."""
        path = self.folder / name
        partial = path.with_name(path.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
        return path

    def read_json(self, name: str) -> Any:
        """A JSON file's content, or None where it is missing or broken."""
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add a batch's lines in one write, and see them onto the disk."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        with self.samples.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """All whole lines."""
        if not self.samples.is_file():
            return []
        found = []
        for line in self.samples.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the torn end of a killed run
            if isinstance(row, dict) and "series" in row:
                found.append(row)
        return found

    def recover(self, batches: Sequence[Sequence[str]]) -> set[tuple[str, int]]:
        """Drop torn lines and unfinished batches.

        Args:
            batches: Sample ids per batch.

        Returns:
            (series, batch) of everything that is done.
        """
        rows = self.rows()
        where = {sample: number for number, batch in enumerate(batches) for sample in batch}
        seen: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
        for row in rows:
            if row["sample"] in where:
                seen.setdefault((row["series"], where[row["sample"]]), {}).setdefault(row["sample"], row)
        done = {key for key, batch in seen.items() if len(batch) == len(batches[key[1]])}
        kept = [row for key, batch in seen.items() if key in done for row in batch.values()]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        if self.samples.is_file() and self.samples.read_text(encoding="utf-8", errors="replace") != text:
            self.write(self.samples.name, text)
        return done


def _shared(config: str) -> list[str]:
    """Lines of what has to be the same for results to stand beside each other."""
    fields = yaml.safe_load(config)
    kept = {name: value for name, value in fields.items() if name not in ("methods", "budgets", "oracle", "output")}
    return yaml.safe_dump(kept, sort_keys=False).splitlines()
