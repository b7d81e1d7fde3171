"""A folder that one process at a time writes to. A process that is killed at any moment leaves whole files behind."""

import errno
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import yaml
from filelock import FileLock, Timeout

from tokenprune.core.text import well_formed
from tokenprune.errors import OutputError
from tokenprune.output.lines import Row, json_ready, line

#: The file of a run's settings.
CONFIG = "config.yaml"


class OutputFolder:
    """The files of one long run. The folder is created when it is locked.

    Args:
        folder: The folder of the files.

    Attributes:
        folder: The folder.
        samples: The file of the rows, which grows while the run goes on.

    Raises:
        OutputError: It is no path.
    """

    def __init__(self, folder: str | Path) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise OutputError(f"output folder is {type(folder).__name__}", "give its path")
        if "\0" in str(folder):
            raise OutputError(f"output folder {str(folder)!r} has a NUL character", "choose another")
        self.folder = Path(folder)
        self.samples = self.folder / "samples.jsonl"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder inside the block. The system drops the lock of a process that dies.

        A block that writes nothing leaves nothing behind: neither the folder nor those above it that it made.

        Raises:
            OutputError: The folder cannot be written, or another process writes to it.
        """
        lock, owner = FileLock(self.folder / ".lock", timeout=0), self.folder / ".owner"
        made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            before = self._names()
            try:
                lock.acquire()
            except Timeout:
                pid = owner.read_text() if owner.is_file() else ""  # it is written after the lock is taken
                who = f"process {pid}" if pid else "another process"
                raise OutputError(
                    f"{self.folder} is being written by {who}", "wait for it, or choose another output folder"
                ) from None
            owner.write_text(str(os.getpid()))
        try:
            yield
        finally:
            owner.unlink(missing_ok=True)
            names = self._names()
            if names <= {".lock"} or names - {".lock"} == before:
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
            with suppress(OSError):  # the first that holds something
                for path in made:
                    path.rmdir()

    def _names(self) -> set[str]:
        """The names of what the folder holds."""
        return {path.name for path in self.folder.iterdir()}

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OutputError:
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                what = f"the disk that holds {self.folder} is full"
                raise OutputError(what, "free some space and run the same command again: it continues") from None
            raise OutputError(
                f"output folder {self.folder} cannot be written ({error.strerror})", "choose another"
            ) from None

    def write(self, name: str, text: str) -> Path:
        """Write a file atomically: a reader sees the old text or the new one. Lone surrogates become U+FFFD.

        Raises:
            OutputError: The disk is full, or the folder cannot be written.
        """
        path = self.folder / name
        with self.replacing(path) as file:
            file.write(well_formed(text))
        return path

    def write_lines(self, name: str, rows: Iterable[Row]) -> Path:
        """Write rows as lines of JSON, atomically; see :meth:`write`."""
        path = self.folder / name
        with self.replacing(path) as file:
            file.writelines(map(line, rows))
        return path

    @contextmanager
    def replacing(self, path: Path) -> Iterator[TextIO]:
        """Open a file of the folder for writing. It takes the place of the old one when the block ends without error.

        The folder is made.

        Raises:
            OutputError: The disk is full, or the folder cannot be written.
        """
        partial = path.with_name(path.name + ".partial")
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("w", encoding="utf-8", newline="\n") as file:
                    yield file
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)

    def write_json(self, name: str, value: Any) -> Path:
        """Write a value as JSON; see :func:`tokenprune.output.lines.json_ready`."""
        return self.write(name, json.dumps(json_ready(value), indent=1, allow_nan=False))

    def read_text(self, name: str) -> str:
        """The content of a file; empty if the file is missing or cannot be read."""
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return ""

    def read_json(self, name: str) -> Any:
        """The content of a JSON file, or None if the file is missing or broken."""
        try:
            return json.loads(self.read_text(name))
        except ValueError:
            return None

    def read_mapping(self, name: str) -> dict[str, Any]:
        """The mapping in a JSON file; empty if the file is missing, broken, or holds something else."""
        found = self.read_json(name)
        return found if isinstance(found, dict) else {}

    def config(self) -> dict[str, Any]:
        """The settings of the run in the folder; empty if the file is missing or damaged."""
        try:
            found = yaml.safe_load(self.read_text(CONFIG))
        except (ValueError, yaml.YAMLError):  # e.g. a date with a wrong value
            return {}
        return found if isinstance(found, dict) else {}

    def append_rows(self, path: Path, rows: Sequence[Row]) -> None:
        """Append lines to a file in one write and flush them to the disk.

        Args:
            path: A file of the folder.
            rows: What to append.

        Raises:
            OutputError: The disk is full, or the folder cannot be written. What was complete stays complete.
        """
        text = "".join(map(line, rows))
        with self._writing(), path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
