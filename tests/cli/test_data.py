"""`tokenprune data`, and the same in a dry run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.datasets.test_media import picture
from tests.experiment.test_cli import call, write
from tests.tasks.test_rows import jsonl

pytestmark = pytest.mark.usefixtures("toy_installed")

CHOICES = {"image": "a.png", "question": "Which?", "choices": ["cat", "dog", "bird"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(tmp_path / "a.png", (20, 10))
    return tmp_path


def test_rows_as_they_are_understood(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [CHOICES | {"label": "1", "hint": "x"}, CHOICES | {"label": "9"}, CHOICES | {"label": 7}]
    data = jsonl(folder, rows)
    options = ["--columns", "answer=label", "--answer-is", "index0", "--rows", "1"]
    assert call(monkeypatch, "data", data, *options) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:6] == [
        f"{data}, line 1 (id line-1, type all)",
        "  pictures  20 x 10",
        "  question  Which?",
        "            A. cat",
        "            B. dog",
        "            C. bird",
    ]
    for words in (
        "  expected  B. dog\n3 samples read: 1 used, 2 left out.\n",
        "2 left out: ",
        f"these: {data}, line 2, {data}, line 3\n",
        "answer: label; choices: choices. Not used: hint\nmetric: multiple_choice\nanswer_is: index0\n",
        "--all decodes every picture.",
    ):
        assert words in out
    assert "found in the data" not in out


def test_json(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    picture(folder / "a.png", (32, 32))
    data = jsonl(folder, [CHOICES | {"answer": "B"}, CHOICES | {"answer": "x"}, CHOICES])
    assert call(monkeypatch, "data", data, "--json", "--rows", "1") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["total"], said["read"], said["used"]) == (3, 3, 1)
    assert (said["rows"][0]["pictures"], said["rows"][0]["expected"]) == (["32 x 32"], ["B. dog"])
    assert [(reason["count"], reason["first"]) for reason in said["left_out"]] == [
        (1, [f"{data}, line 2"]),
        (1, [f"{data}, line 3"]),
    ]
    assert all(reason["reason"] and reason["fix"] for reason in said["left_out"])
    file = write(folder, task={"name": "vqa", "data": data}, methods=["random"])
    assert call(monkeypatch, "run", file, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["understood"]["left_out"] == said["left_out"]


@pytest.mark.parametrize("name", ["run", "tune", "toy"])
def test_the_task_of_a_file_or_of_a_name(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"task": {"name": "vqa", "data": jsonl(folder, [CHOICES | {"answer": "B"}])}}))
    assert call(monkeypatch, "data", "toy" if name == "toy" else str(path), "--all") == 0
    assert ("id s0" if name == "toy" else "expected  B. dog") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["q.jsonl"], "answer_is: index0 and index1 fit all rows; "),
        (["q.jsonl", "--answer-is", "text"], "none of the 1 samples can be used; the first: "),
        (["q.jsonl", "--answer-is", "number"], "task.answer_is"),
        (["q.jsonl", "--columns", "answer"], "--columns 'answer' names no column; write ROLE=NAME"),
        (["q.jsonl", "--columns", "answer=a", "--columns", "answer=b"], "--columns answer is given twice"),
        (["q.jsonl", "--columns", "anser=a"], "--columns: there is no role 'anser'; did you mean 'answer'"),
        (["q.jsonl", "--columns", "answer=a"], "has no column 'a' (answer)"),
        (["nowhere.yaml"], "there is no file"),
        (["empty.yaml"], "it has no task"),
        (["nowhere.jsonl"], "there is no file or folder"),
    ],
)
def test_mistakes(
    folder: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    jsonl(folder, [CHOICES | {"answer": 1}])
    (folder / "empty.yaml").write_text("model: toy\n")
    assert call(monkeypatch, "data", str(folder / arguments[0]), *arguments[1:]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert (err.startswith("error: "), err.count("\n")) == (True, 1)


def test_a_dry_run_shows_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run", write(tmp_path), "--dry-run", "--limit", "2") == 0
    out = capsys.readouterr().out
    assert "sample 1 (id s0, type even)\n  pictures  32 x 32\n  question  ab\n  expected  w\n" in out
    assert "2 of 10 samples read: 2 used, 0 left out." in out
