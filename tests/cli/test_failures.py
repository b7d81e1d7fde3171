"""How the command line shows warnings of ours and those of others, and whose fault an exception is."""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenprune.cli import failures
from tokenprune.cli.failures import reported, warnings_reported
from tokenprune.errors import TokenPruneWarning
from tokenprune.report.extra import NotWrittenWarning


@pytest.mark.parametrize("kind", [TokenPruneWarning, NotWrittenWarning])
def test_a_warning_of_ours_is_one_line_once(capsys: pytest.CaptureFixture[str], kind: type[Warning]) -> None:
    with warnings_reported():
        for _ in range(2):
            warnings.warn("the folder\ncannot be used", kind, stacklevel=1)
        warnings.warn("another one", kind, stacklevel=1)
    assert capsys.readouterr().err == "the folder cannot be used\nanother one\n"


def test_warnings_of_others_are_shown_as_ever() -> None:
    with pytest.warns(UserWarning, match="of a library"), warnings_reported():
        warnings.warn("of a library", UserWarning, stacklevel=1)


# ---- what is no bug of ours ----


def line_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], work: Callable[[], Any]) -> str:
    """The only line that a command prints when something in it fails."""
    monkeypatch.setattr(sys, "argv", ["tokenprune"])
    with pytest.raises(SystemExit) as stop, reported():
        work()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_the_machine_is_to_blame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied() -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "secret.yaml")

    def memory() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    line = partial(line_of, monkeypatch, capsys)
    assert line(denied) == "error: secret.yaml cannot be used (Permission denied); check the path and its permissions\n"
    assert line(tmp_path.read_bytes).startswith(f"error: {tmp_path} cannot be used (Is a directory); check")
    assert line(memory).startswith("error: the memory is full; use a smaller batch_size")
    assert line((tmp_path / "latin.txt").read_text).startswith("error: a file is no text in UTF-8 ('utf-8' codec")


def test_a_plugin_is_to_blame(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("tokenprune.cli.failures.plugin_of", lambda error: "their-dist")
    line = line_of(monkeypatch, capsys, lambda: {}["a"])
    assert line.startswith("error: the plugin their-dist failed (KeyError: 'a'; cli/test_failures.py, line ")
    assert line.endswith("; report it to its authors, or leave it out\n")


@pytest.mark.parametrize("plugins", [{}, {"theirs": "their-dist"}])
def test_a_bug_names_plugins_only_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], plugins: dict[str, str]
) -> None:
    monkeypatch.setattr("tokenprune.cli.failures.plugins_installed", lambda: plugins)
    monkeypatch.setattr(sys, "argv", ["tokenprune"])
    with pytest.raises(SystemExit) as stop, reported():
        raise ZeroDivisionError
    assert stop.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert ("--no-plugins" in lines[-1]) == bool(plugins)
    assert ("or in a plugin" in lines[-1]) == bool(plugins)


def test_a_missing_file_of_our_own_is_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tokenprune"])
    with pytest.raises(SystemExit) as stop, reported():
        (Path(failures.__file__).parent / "missing.yaml").read_text()
    assert stop.value.code == 1
    assert "this is a bug in tokenprune" in capsys.readouterr().err
