"""Texts for terminals and files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenprune.core.text import one_line, write_file
from tokenprune.errors import OutputError


def test_a_message_is_one_line() -> None:
    assert one_line(ValueError("a\n  b\t c")) == "a b c"
    assert one_line(TimeoutError()) == "TimeoutError"


def test_files_are_written_into_new_folders(tmp_path: Path) -> None:
    write_file(tmp_path / "new" / "text", "a\ud800ü")
    assert (tmp_path / "new" / "text").read_bytes() == "a\ufffdü".encode()
    write_file(tmp_path / "bytes", b"\xff")
    assert (tmp_path / "bytes").read_bytes() == b"\xff"
    with pytest.raises(OutputError, match=r"cannot write .*text/x \(.+\); choose another file"):
        write_file(tmp_path / "new" / "text" / "x", "")
