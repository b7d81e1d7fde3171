"""`tokenprune tune` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import tokenprune as tp
from tests.experiment.test_cli import call
from tokenprune.cli.tune import QUESTION, task_entry, tune_settings
from tokenprune.errors import ConfigError
from tokenprune.models.named import model_entry

pytestmark = pytest.mark.usefixtures("toy_installed")

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("tune-*.yaml"))


def write(folder: Path, **changes: Any) -> str:
    path = folder / "tune.yaml"
    plain = {
        "model": "toy",
        "task": "toy",
        "budget": {"name": "layer_average", "ratio": 0.5},
        "methods": ["fastv"],
        "samples": 8,
        "output": str(folder / "out"),
    }
    path.write_text(yaml.safe_dump(plain | changes))
    return str(path)


def test_a_file_is_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "tune", write(tmp_path, methods=["fastv", "oracle"])) == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in (
        "50 % of the tokens, layer average",
        "candidate before layer",
        "cannot run: oracle",
        "random",
        "within the noise",
    ):
        assert words in out
    for name in ("tuned.yaml", "report.md", "tune.jsonl", "report.html", "tune.png"):
        assert f"written: {tmp_path / 'out' / name}" in out
    assert tp.load_method(tmp_path / "out" / "tuned.yaml").budget.ratio == 0.5  # type: ignore[attr-defined]


def test_workers_share_a_tune(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, samples = write(tmp_path), tmp_path / "out" / "samples.jsonl"
    assert call(monkeypatch, "tune", file) == 0
    alone = samples.read_bytes()
    assert (
        call(monkeypatch, "tune", file, "--output", str(tmp_path / "split"), "--executor", "local", "--workers", "2")
        == 0
    )
    assert (tmp_path / "split" / "samples.jsonl").read_bytes() == alone
    assert f"written: {tmp_path / 'split' / 'tuned.yaml'}" in capsys.readouterr().out


@pytest.mark.slow
def test_options_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "tune",
        "--model",
        "toy",
        "--data",
        "toy",
        "--average-tokens",
        "8",
        "--average-tokens",
        "6",
        "--method",
        "fastv",
    ]
    assert call(monkeypatch, *words, "--samples", "8", "--objective", "agreement", "--labels") == 0
    assert "6 tokens, layer average: " in capsys.readouterr().out
    stored = tp.TuneConfig.from_yaml(tmp_path / "results" / "tune" / "config.yaml")
    assert stored.objective == "agreement"
    assert stored.labels
    assert [budget.tokens for budget in stored.all_budgets] == [8, 6]  # type: ignore[union-attr]


def test_options_replace_what_the_file_says(tmp_path: Path) -> None:
    given = {"budgets": [{"name": "prefill_time", "ratio": 0.5}], "samples": 9}
    settings = tune_settings(Path(write(tmp_path)), given)
    assert settings.samples == 9
    assert [type(budget).__name__ for budget in settings.all_budgets] == ["PrefillTime"]
    assert settings.methods is not None


def test_pictures_in_a_folder_get_a_question(tmp_path: Path) -> None:
    assert task_entry(str(tmp_path), None) == {"name": "vqa", "data": str(tmp_path), "question": QUESTION}
    assert task_entry(str(tmp_path), "Why?")["question"] == "Why?"
    assert task_entry("questions.jsonl", None) == {"name": "vqa", "data": "questions.jsonl"}
    assert task_entry("toy", None) == {"name": "toy"}
    with pytest.raises(ConfigError, match="the task 'toy' has its own questions"):
        task_entry("toy", "Why?")
    assert model_entry("toy") == {"name": "toy"}
    assert model_entry("some/checkpoint") == {"name": "hf", "checkpoint": "some/checkpoint"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "tune: no model; give --model, or a file"),
        (["--model", "toy"], "tune: no data; give --data, or a file"),
        (
            ["--model", "toy", "--data", "toy"],
            "no budgets; give --average-tokens, --average-ratio, --flops-reduction or --prefill-time",
        ),
        (
            ["--model", "toy", "--data", "none.jsonl", "--average-ratio", "0.5"],
            "there is no file or folder 'none.jsonl'",
        ),
        (["--model", "toy", "--data", "toy", "--average-tokens", "17"], "more than the 16 visual tokens of a sample"),
        (["--model", "toy", "--data", "toy", "--average-tokens", "8", "--method", "fastw"], "did you mean 'fastv'"),
        (
            ["--model", "toy", "--data", "toy", "--average-tokens", "8", "--samples", "1"],
            "samples: Input should be greater",
        ),
        (["--device", "cpu"], "--device and --dtype are for --model; write them under model: in the file"),
        (["--model", "llava-1.5-7b"], "'llava-1.5-7b' is an architecture without weights, for `bench` and `flops`"),
        (["--model", "toi"], "unknown model 'toi'; did you mean 'toy'"),
        (["none.yaml"], "no such config file: none.yaml"),
        (
            ["--model", "toy", "--data", "toy", "--average-tokens", "8", "--workers", "2"],
            "workers are started by an executor, and none is given; give local, ray or submitit",
        ),
        (
            ["--model", "toy", "--data", "toy", "--average-tokens", "8", "--executor", "{name: local"],
            "--executor '{name: local' is no YAML",
        ),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "tune", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert words in error


def test_a_folder_without_pictures_and_broken_pictures_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    options = ["tune", "--model", "toy", "--average-ratio", "0.5", "--method", "fastv", "--data"]
    assert call(monkeypatch, *options, "empty") == 2
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "broken").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "broken" / name).write_text("no picture")
    assert call(monkeypatch, *options, "broken") == 2
    error = capsys.readouterr().err
    assert "none of the task's samples can be used; the first: " in error
    assert error.count("\n") == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_valid(path: Path) -> None:
    config = tp.TuneConfig.from_yaml(path)
    assert config.output == f"results/{path.stem}"


def test_examples_are_found() -> None:
    assert {path.stem for path in EXAMPLES} == {"tune-clips", "tune-demo", "tune-digits"}


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_runs(path: Path, tmp_path: Path) -> None:
    """On few samples, with its last candidate."""
    config = tp.TuneConfig.from_yaml(path)
    assert config.methods is not None
    small = {"samples": 4, "first": 2, "batch_size": 2, "methods": config.methods[-1:], "output": str(tmp_path)}
    result = tp.run_tune(config.model_copy(update=small))
    assert len(result.rankings) == len(config.all_budgets)
    assert all(ranking.samples == 4 for ranking in result.rankings)
