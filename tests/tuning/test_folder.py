"""A tune read from its folder is the one that ran; what is missing or damaged is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.experiment.test_cli import call
from tests.support.toy import ToyModel
from tokenprune.errors import MissingDataError, OutputError
from tokenprune.tuning import TuneConfig, run_tune
from tokenprune.tuning.folder import holds_tune, read_tune

pytestmark = pytest.mark.usefixtures("toy_installed")


def config(output: Path, **changes: Any) -> TuneConfig:
    plain = {
        "model": "toy",
        "task": "toy",
        "budgets": [{"name": "layer_average", "ratio": 0.5}, {"name": "layer_average", "tokens": 6}],
        "methods": ["fastv", "oracle"],
        "samples": 12,
        "output": str(output),
    }
    return TuneConfig.from_dict(plain | changes)


@pytest.mark.parametrize("labels", [False, True])
def test_it_is_the_tune_that_ran_and_no_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: bool
) -> None:
    result = run_tune(config(tmp_path, labels=labels))
    monkeypatch.setattr(ToyModel, "load", lambda self: pytest.fail("the model was loaded"))
    assert holds_tune(tmp_path)
    found = read_tune(tmp_path)
    assert found.rankings == result.rankings
    assert (found.setup, found.folder, found.skipped) == (result.setup, result.folder, result.skipped)
    before = {path.name: path.read_bytes() for path in result.written}
    assert {path.name: path.read_bytes() for path in found.save(tmp_path)} == before


@pytest.mark.slow
def test_an_older_folder_does_not_say_what_the_model_is_called(tmp_path: Path) -> None:
    result = run_tune(config(tmp_path))
    (tmp_path / "run.json").unlink()
    found = read_tune(tmp_path)
    assert found.rankings == result.rankings
    assert found.setup.model == "toy"
    assert (found.setup.goal, found.setup.tokens) == (result.setup.goal, result.setup.tokens)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has not finished; run `tokenprune tune` again: it continues"),
        ('{"budget": "layer_average 0.5", "cand', "has not finished"),
        ("SHORT", "is damaged (KeyError: 'origin')"),
    ],
)
def test_folders_that_cannot_be_read(tmp_path: Path, content: str, words: str) -> None:
    run_tune(config(tmp_path))
    path = tmp_path / "tune.jsonl"
    if content == "SHORT":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        del rows[0]["origin"]
        content = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(content)
    assert holds_tune(tmp_path)
    with pytest.raises(OutputError) as caught:
        read_tune(tmp_path)
    assert words in str(caught.value)
    with pytest.raises(MissingDataError, match="does not exist"):
        read_tune(tmp_path / "none")


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_tune(config(tmp_path / "tune"))
    monkeypatch.chdir(tmp_path)
    text = (tmp_path / "tune" / "report.md").read_text()
    assert call(monkeypatch, "report", "tune", "--output", "copy") == 0
    assert (tmp_path / "copy" / "report.md").read_text() == text
    assert (tmp_path / "copy" / "tune.pdf").is_file()
    capsys.readouterr()
    assert call(monkeypatch, "report", "tune", "copy") == 2
    assert "a comparison takes results of runs, and tune holds a tune" in capsys.readouterr().err
    assert call(monkeypatch, "report", "tune", "--latex", "x.tex") == 2
    assert "tables for papers are made of runs, and tune holds a tune" in capsys.readouterr().err
