"""A result read from its folder is the one that the run returned; what is missing or damaged is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support.toy import ToyModel, completed, config
from tokenprune.errors import MissingDataError, OutputError
from tokenprune.experiment import markdown, run_experiment
from tokenprune.experiment.folder import read_result
from tokenprune.experiment.part import Part
from tokenprune.experiment.report import experiment_page

pytestmark = pytest.mark.usefixtures("toy_installed")


def test_it_is_the_result_of_the_run_and_no_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ["entropyprune", {"name": "random", "seeds": [0, 1]}]
    result = run_experiment(config(str(tmp_path), methods=methods, calibration=4, timing=1, divergence=True))
    monkeypatch.setattr(ToyModel, "load", lambda self: pytest.fail("the model was loaded"))
    assert read_result(tmp_path) == result
    assert markdown(read_result(str(tmp_path))) == markdown(result)


@pytest.mark.parametrize("part", [Part(limit=7), Part(only=("random",)), Part(only=("random",), limit=3)])
def test_the_last_part_that_ran_is_read(tmp_path: Path, part: Part) -> None:
    """Also where everything was there already, and nothing ran."""
    settings = config(str(tmp_path))
    completed(tmp_path)
    again = run_experiment(settings, part=part)
    assert read_result(tmp_path) == again
    assert run_experiment(settings) == read_result(tmp_path)


def test_an_unfinished_run_says_how_much_is_there(tmp_path: Path) -> None:
    result = completed(tmp_path)
    lines = (tmp_path / "samples.jsonl").read_text().splitlines(keepends=True)
    kept = 2 * len(lines) // 3
    (tmp_path / "samples.jsonl").write_text("".join(lines[:kept]) + lines[kept][:40])
    found = read_result(tmp_path)
    assert found.remarks == (
        f"**Not finished:** {kept} of {len(lines)} answers (67 %) are there. `tokenprune run` continues.",
    )
    assert found.remarks[0] in markdown(found)
    assert found.skipped == result.skipped


@pytest.mark.slow
def test_label_free_scores_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config(str(tmp_path))
    monkeypatch.setattr(type(settings.task), "label_free", property(lambda self: True))
    result = run_experiment(settings)
    monkeypatch.undo()
    assert result.label_free
    assert read_result(tmp_path) == result


def test_a_folder_of_an_older_version(tmp_path: Path) -> None:
    result = completed(tmp_path)
    (tmp_path / "run.json").unlink()
    found = read_result(tmp_path)
    assert found.answers == result.answers
    assert [text for text in found.remarks if "older version" not in text] == []
    lines = (tmp_path / "samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "samples.jsonl").write_text("".join(line for line in lines if '"method": "random"' not in line))
    assert "**Not finished:**" in read_result(tmp_path).remarks[1]


def broken(folder: Path, name: str) -> Path:
    """A folder that cannot be read."""
    if name == "none":
        return folder / "none"
    if name == "file":
        (folder / "file").write_text("")
        return folder / "file"
    results = folder / "results"
    completed(results)
    samples = results / "samples.jsonl"
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    match name:
        case "other":
            shutil.rmtree(results)
            results.mkdir()
        case "empty":
            samples.write_text("")
        case "unpruned":
            samples.write_text("".join(json.dumps(row) + "\n" for row in rows if row["method"] != "unpruned"))
        case "damaged":
            del rows[3]["score"]
            samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case "text":
            rows[3]["score"] = "good"
            samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return results


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("none", MissingDataError, "none does not exist; name the output folder of a run"),
        ("file", MissingDataError, "is a file, not a folder of results"),
        ("other", OutputError, "is no results folder: it has no samples.jsonl"),
        ("empty", OutputError, "has no answers; run the experiment again"),
        ("unpruned", OutputError, "has no answers of the unpruned model"),
        ("damaged", OutputError, "holds a line that is no answer (KeyError: 'score')"),
        ("text", OutputError, "holds a line that is no answer (TypeError"),
    ],
)
def test_folders_that_cannot_be_read(tmp_path: Path, name: str, error: type[Exception], words: str) -> None:
    folder = broken(tmp_path, name)
    with pytest.raises(error) as caught:
        read_result(folder)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "entry", "words"),
    [
        ("choices.json", None, "random / keep_count 2: Input should be"),
        ("choices.json", {"reason": "why"}, "random / keep_count 2.layers: Field required"),
        ("choices.json", {"layers": [2], "reason": "why", "tuned": {}}, "random / keep_count 2.tuned.sentence"),
        ("timing.json", ["fast"], "random / keep_count 2.0: Input should be a valid number"),
    ],
)
def test_damaged_entries_are_one_clear_error(tmp_path: Path, name: str, entry: object, words: str) -> None:
    completed(tmp_path, methods=["random"], budgets=[{"name": "keep_count", "tokens": 2}], timing=1)
    path = tmp_path / name
    path.write_text(json.dumps(json.loads(path.read_text()) | {"random / keep_count 2": entry}))
    with pytest.raises(OutputError, match=f"{name} is damaged") as caught:
        read_result(tmp_path)
    assert words in str(caught.value)


def test_an_environment_that_is_no_mapping_is_not_shown(tmp_path: Path) -> None:
    completed(tmp_path, methods=["random"], budgets=[{"name": "keep_count", "tokens": 2}])
    (tmp_path / "environment.json").write_text('["torch"]')
    assert not experiment_page(read_result(tmp_path)).versions
