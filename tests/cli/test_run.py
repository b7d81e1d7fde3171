"""`run` and `merge` on the command line: parts of an experiment, and what a run prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experiment.test_cli import call, write
from tokenprune.cli.printing import duration

pytestmark = pytest.mark.usefixtures("toy_installed")


def test_a_dry_run_says_what_would_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "run", write(tmp_path), "--dry-run") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "series before layer batches forwards about" in out
    assert "random / keep_ratio 0.5" in out
    assert "10 questions; the times are those of the first batch (8 questions)" in out
    assert "Nothing was written." in out
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_limit_only_and_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path, batch_size=2, timing=0)
    assert call(monkeypatch, "run", config, "--limit", "6", "--only", "random") == 0
    assert "oracle" not in capsys.readouterr().out
    assert "6 questions" in (tmp_path / "results" / "report.md").read_text()
    whole, split = str(tmp_path / "whole"), str(tmp_path / "split")
    assert call(monkeypatch, "run", config, "--output", whole) == 0
    assert call(monkeypatch, "run", config, "--output", split, "--executor", "local", "--workers", "2") == 0
    for name in ("samples.jsonl", "report.md", "summary.json"):
        assert (Path(split) / name).read_bytes() == (Path(whole) / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "randon"], "the experiment has no method 'randon'; did you mean 'random'"),
        (["--workers", "2"], "workers are started by an executor, and none is given; give local, ray or submitit"),
        (["--executor", "lokal"], "unknown executor 'lokal'; did you mean 'local'"),
        (["--limit", "0"], "limit 0 uses no sample; give 1 or more"),
    ],
)
def test_mistakes_in_options(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert call(monkeypatch, "run", write(tmp_path), *arguments) == 2
    assert message in capsys.readouterr().err


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.04, 9.96, 59.4, 61, 3600, 100_000)] == [
        "0.0 s",
        "10.0 s",
        "59 s",
        "1 min 1 s",
        "1 h 0 min",
        "27 h 46 min",
    ]
