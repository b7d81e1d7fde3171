"""`tokenprune report` and the picture of `tokenprune profile`, on the command line."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.experiment.test_cli import call, write
from tests.support.toy import ToyModel

pytestmark = pytest.mark.usefixtures("toy_installed")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, toy_installed: None) -> Path:
    """What a run leaves, beside its config."""
    folder = tmp_path_factory.mktemp("ran")
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, "run", write(folder, timing=0)) == 0
    return folder


@pytest.fixture
def finished(ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run; no model can be loaded."""
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(ToyModel, "load", lambda self: pytest.fail("the model was loaded"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


def test_the_reports_are_made_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("report.md", "summary.json", "report.html", "accuracy.png", "accuracy.svg", "accuracy.pdf")
    before = {name: (finished / name).read_bytes() for name in names}
    for name in names:
        (finished / name).unlink()
    assert call(monkeypatch, "report", str(finished)) == 0
    assert {name: (finished / name).read_bytes() for name in names} == before
    out = capsys.readouterr().out
    assert f"written: {finished / 'report.md'}\n" in out
    assert f"written: {finished / 'accuracy.png'}, and as .svg and .pdf\n" in out


@pytest.mark.slow
def test_another_folder_for_the_report(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (finished / "report.md").read_text()
    (finished / "report.md").unlink()
    assert call(monkeypatch, "report", str(finished), "--output", "deep/copy") == 0
    assert (tmp_path / "deep" / "copy" / "report.md").read_text() == text
    assert not (finished / "report.md").exists()


@pytest.mark.slow
def test_tables_for_papers(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--latex", "paper/table.tex", "--csv", "paper/table.csv", "--share"]
    assert call(monkeypatch, "report", str(finished), *arguments) == 0
    assert "50 \\% of the tokens kept" in (tmp_path / "paper" / "table.tex").read_text()
    assert "\\% of unpruned" in (tmp_path / "paper" / "table.tex").read_text()
    with (tmp_path / "paper" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    summary = json.loads((finished / "summary.json").read_text())
    assert [row["method"] for row in rows] == [row["method"] for row in summary]
    for row, stored in zip(rows, summary, strict=True):
        assert float(row["accuracy_percent"]) == pytest.approx(100 * stored["accuracy"]["mean"])


@pytest.mark.slow
def test_several_folders_are_compared(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in finished.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    lines = (other / "samples.jsonl").read_text().splitlines(keepends=True)
    (other / "samples.jsonl").write_text("".join(lines[: len(lines) // 2]))
    assert call(monkeypatch, "report", str(finished), str(other), "--csv", "both.csv") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"other: Not finished: {len(lines) // 2} of {len(lines)} answers" in out
    names = {path.name for path in (tmp_path / "report").iterdir()} - {".lock"}
    assert {"report.md", "report.html", "accuracy.png", "accuracy.svg", "accuracy.pdf"} == names
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| results | random | keep_ratio 0.5 |" in text
    assert "| other | random | keep_ratio 0.5 |" in text or "| other | unpruned |" in text
    with (tmp_path / "both.csv").open() as file:
        assert {row["results"] for row in csv.DictReader(file)} == {"results", "other"}
    svg = (tmp_path / "report" / "accuracy.svg").read_text()
    assert ">results</text>" in svg
    assert ">other</text>" in svg


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere does not exist; name the output folder of a run"),
        (["experiment.yaml"], "experiment.yaml is a file, not a folder of results"),
        (["."], "no results folder: it has no samples.jsonl"),
        (["results", "nowhere"], "nowhere does not exist"),
        (["results", "results"], "the folder 'results' is named twice; name it once"),
        (["results", "--share"], "--share adds a column to the LaTeX table; give --latex, too"),
        (["results", "--latex", "experiment.yaml/table.tex"], "cannot write experiment.yaml/table.tex"),
        (["results", "--latex", "results"], "cannot write results (Is a directory)"),
        (["results", "--csv", "experiment.yaml/table.csv"], "cannot write experiment.yaml/table.csv"),
        (["results", "--output", "experiment.yaml"], "cannot write into experiment.yaml (File exists)"),
    ],
)
def test_mistakes_are_one_line(
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    before = (finished / "report.md").stat().st_mtime_ns
    assert call(monkeypatch, "report", *arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert (finished / "report.md").stat().st_mtime_ns == before


def test_a_run_without_answers(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "samples.jsonl").write_text("")
    assert call(monkeypatch, "report", str(finished)) == 2
    assert capsys.readouterr().err.endswith("results has no answers; run the experiment again: it continues\n")


@pytest.mark.slow
def test_a_profile_is_drawn_beside_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path, methods=["entropyprune"], calibration=4)
    output = tmp_path / "out" / "mine.json"
    output.parent.mkdir()
    assert call(monkeypatch, "profile", config, "--output", str(output)) == 0
    assert f"written: {output.with_suffix('.png')}, and as .svg and .pdf" in capsys.readouterr().out
    assert {path.name for path in output.parent.iterdir()} == {f"mine.{end}" for end in ("json", "png", "svg", "pdf")}


def test_a_profile_without_vl_convert_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    config, output = write(tmp_path, methods=["random"], calibration=4), tmp_path / "out" / "profile.json"
    output.parent.mkdir()
    assert call(monkeypatch, "profile", config, "--output", str(output)) == 0
    error = capsys.readouterr().err
    assert error.startswith("no picture was drawn (import of vl_convert halted; None in sys.modules); pip install ")
    assert error.count("\n") == 1
    assert [path.name for path in output.parent.iterdir()] == ["profile.json"]
