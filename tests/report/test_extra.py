"""Files that need optional packages are written, or named in a warning."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tokenprune.report.extra import NotWrittenWarning, write_drawn


def lacks(name: str) -> None:
    raise ImportError(f"No module named {name!r}")


def test_what_can_be_written_is_written(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = write_drawn({tmp_path / "a": lambda path: path.touch(), tmp_path / "b": lambda path: path.touch()})
    assert written == [tmp_path / "a", tmp_path / "b"]
    assert all(path.is_file() for path in written)


def test_what_cannot_is_named_in_one_line(tmp_path: Path) -> None:
    writers = {
        tmp_path / "report.html": lambda path: lacks("jinja2"),
        tmp_path / "there": lambda path: path.touch(),
        tmp_path / "plot.png": lambda path: lacks("vl_convert"),
    }
    with pytest.warns(NotWrittenWarning) as found:
        assert write_drawn(writers) == [tmp_path / "there"]
    (warning,) = found
    text = str(warning.message)
    assert text.startswith("not written: report.html and plot.png (No module named 'jinja2'; No module named 'vl_co")
    assert "pip install 'tokenprune-mllm[report]'" in text
    assert "\n" not in text


def test_other_errors_are_not_swallowed(tmp_path: Path) -> None:
    def broken(path: Path) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        write_drawn({tmp_path / "a": broken})
