"""Where commands write: a mistyped path makes no folders, and a refused command leaves nothing behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.experiment.test_cli import call, write
from tokenprune.cli.outputs import check_folder, check_writable
from tokenprune.errors import OutputError

pytestmark = pytest.mark.usefixtures("toy_installed")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; the experiment's file is beside it."""
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path


def test_a_file_outside_needs_its_folder(home: Path) -> None:
    check_writable(home / "x.json")
    with pytest.raises(OutputError, match=re.escape(f"there is no folder {home / 'nope'}; check the path, or make")):
        check_writable(home / "nope" / "x.json")
    with pytest.raises(OutputError, match=re.escape(f"there is no folder {home / 'nope'}; ")):
        check_writable(Path("..") / "nope" / "deep" / "x.json")
    check_folder(home / "nope")
    with pytest.raises(OutputError, match=re.escape(f"there is no folder {home / 'nope'}; ")):
        check_folder(home / "nope" / "results")
    (home / "home" / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write into file \(File exists\); choose another folder"):
        check_folder(Path("file"))
    assert [path.name for path in home.iterdir()] == ["home"]


def test_below_the_working_directory_folders_are_made(home: Path) -> None:
    check_folder(Path("results/again"))
    check_writable(home / "home" / "new" / "deep" / "x.json")
    (home / "home" / "old").write_text("kept")
    check_writable(Path("old"))
    assert Path("old").read_text() == "kept"
    assert [path.name for path in Path().iterdir()] == ["old"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("~/x.json", "'~' stands for no folder here"),
        ("~someone", "'~' stands"),
        ("", "cannot write"),
        ("a" * 300, "cannot write"),
        ("a" * 300 + "/b", "cannot write"),
    ],
)
def test_what_is_no_place(home: Path, path: str, words: str) -> None:
    with pytest.raises(OutputError, match=words):
        check_writable(Path(path))
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "FILE"],
        ["run", "FILE", "--dry-run"],
        ["tune", "--model", "toy", "--data", "toy", "--average-tokens", "8"],
        ["report", "FOLDER"],
        ["profile", "FILE"],
        ["schema"],
        ["bench"],
        ["look", "x.png", "--question", "x?", "--model", "toy", "--method", "fastv"],
    ],
    ids=" ".join,
)
def test_every_command_refuses_a_mistyped_place(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    file = write(home)
    given = [{"FILE": file, "FOLDER": str(home)}.get(word, word) for word in arguments]
    assert call(monkeypatch, *given, "--output", str(home / "nope" / "deep" / "x.png")) == 2
    error = capsys.readouterr().err
    assert f"there is no folder {home / 'nope'}; check the path, or make the folder first" in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in home.iterdir()) == ["experiment.yaml", "home"]
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("command", ["run", "tune"])
def test_a_refused_run_leaves_no_folders(home: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """It is refused while the folder is locked: there is no such layer in the model."""
    changes: dict[str, object] = {"methods": [{"name": "fastv", "layers": {"name": "fixed", "layers": [99]}}]}
    arguments = {"run": [write(home, **changes)], "tune": ["--model", "toy", "--data", "toy", "--average-tokens", "99"]}
    assert call(monkeypatch, command, *arguments[command], "--output", "new/deep") == 2
    assert list(Path().iterdir()) == []
