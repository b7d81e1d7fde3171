"""Messages between processes through files on a disk that both see: each side appends to a file that the other reads.

A file is opened for every message and every look, since network disks show new content to those who open a file anew.
"""

from __future__ import annotations

import os
import pickle
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_LENGTH = struct.Struct("<Q")


class Letters:
    """A file of letters. One process appends to it, and one reads it.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0

    def append(self, content: Any) -> None:
        """Write a letter.

        Raises:
            OSError: It cannot be written.
        """
        data = pickle.dumps(content)
        with self.path.open("ab") as file:
            file.write(_LENGTH.pack(len(data)) + data)
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[Any]:
        """The letters that are new, as far as they are whole."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return []
        found, start = [], 0
        while len(data) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, start)
            end = start + _LENGTH.size + length
            if end > len(data):
                break
            found.append(pickle.loads(data[start + _LENGTH.size : end]))
            start = end
        self._read += start
        return found


class Pulse:
    """Shows that a process lives: a file whose content changes.

    Args:
        path: The file.
        every: Seconds between two changes.
    """

    def __init__(self, path: Path, every: float) -> None:
        self._path, self._every = path, every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="tokenprune-pulse", daemon=True)

    def start(self) -> None:
        """Begin to beat, on a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Beat no longer."""
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        count = 0
        while True:
            count += 1
            with suppress(OSError):  # a full disk: whoever writes something says so
                self._path.write_text(str(count))
            if self._ended.wait(self._every):
                return


class Watch:
    """Says when a pulse was last seen. Clocks of several machines are not compared.

    Args:
        path: The pulse's file.
        clock: Seconds that pass.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._seen, self._since = "", clock()

    def silent(self) -> float:
        """Seconds since the file was last seen to change, or since the watch began."""
        with suppress(OSError):
            text = self._path.read_text()
            if text not in ("", self._seen):
                self._seen, self._since = text, self._clock()
        return self._clock() - self._since
