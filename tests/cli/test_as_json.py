"""``--json``: one value on stdout and nothing else, with the numbers of the tables in full precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.experiment.test_cli import call, write
from tokenprune.experiment.folder import read_result
from tokenprune.experiment.summary import summarise
from tokenprune.experiment.tables import COLUMNS
from tokenprune.tables import csv

pytestmark = pytest.mark.usefixtures("toy_installed")


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    return json.loads(capsys.readouterr().out, parse_constant=refuse)


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with None for NaN."""
    return [{name: None if value != value else value for name, value in row.items()} for row in rows]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_run_and_report(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(folder, timing=0)
    assert call(monkeypatch, "run", config, "--dry-run", "--json") == 0
    plan = printed(capsys)
    assert (plan["questions"], plan["series"][0]["key"]) == (10, "unpruned")
    assert plan["seconds"] > 0
    assert call(monkeypatch, "run", config, "--json") == 0
    ran = printed(capsys)
    expected = plain(csv.rows(COLUMNS, summarise(read_result(folder / "results"))))
    assert ran["results"] == expected
    assert {"method", "budget", "accuracy_percent", "kv_cache_bytes", "prefill_time_ratio"} <= set(expected[0])
    assert ran["results"][0]["prefill_time_ratio"] is None
    assert str(folder / "results" / "report.md") in ran["files"]
    assert call(monkeypatch, "report", "results", "--json") == 0
    assert printed(capsys)["results"] == expected


@pytest.mark.slow
def test_a_comparison(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        assert call(monkeypatch, "run", write(folder, timing=0), "--output", name) == 0
    capsys.readouterr()
    assert call(monkeypatch, "report", "one", "two", "--json") == 0
    data = printed(capsys)
    assert set(data["folders"]) == {"one", "two"}
    assert {row["results"] for row in data["results"]} == {"one", "two"}
    (random,) = (row for row in data["results"] if (row["results"], row["method"]) == ("two", "random"))
    assert random["minus_first_points"] == 0


@pytest.mark.slow
def test_tune(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "toy", "--data", "toy", "--average-ratio", "0.5", "--method", "fastv", "--samples", "8"]
    assert call(monkeypatch, "tune", *arguments, "--json") == 0
    data = printed(capsys)
    lines = [json.loads(line) for line in (folder / "results" / "tune" / "tune.jsonl").read_text().splitlines()]
    assert data["candidates"] == [{name: value for name, value in row.items() if name != "samples"} for row in lines]
    assert data["sentence"]
    assert "results/tune/tuned.yaml" in data["files"]
    assert call(monkeypatch, "report", "results/tune", "--json") == 0
    assert printed(capsys)["candidates"] == data["candidates"]


def test_list_and_show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "list", "--json") == 0
    rows = printed(capsys)
    assert {row["kind"] for row in rows} >= {"scorers", "methods", "tasks"}
    assert ("models", "toy") in [(row["kind"], row["name"]) for row in rows]
    assert call(monkeypatch, "list", "budgets", "--json") == 0
    assert printed(capsys) == [row for row in rows if row["kind"] == "budgets"]
    assert call(monkeypatch, "show", "vtw", "--json") == 0
    own = printed(capsys)
    assert own["method"]["layers"]["name"] == "vtw"
    assert own["settings"] is None
    assert call(monkeypatch, "show", "vtw", "--json", "--model", own["published"][0]["model"]) == 0
    assert own["published"][0]["source"] in printed(capsys)["settings"]


def test_profile(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(folder, methods=["random"], calibration=4)
    assert call(monkeypatch, "profile", config, "--output", "p.json", "--json") == 0
    data = printed(capsys)
    assert data["profile"] == json.loads((folder / "p.json").read_text())
    assert len(data["mean"]) == data["profile"]["num_layers"]
    assert len(data["sentences"]) == 3
    assert list(data["path"].values())[-len(data["mean"]) :] == data["mean"]
    assert list(data["path"])[-1] == f"layer {len(data['mean']) - 1}"


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", [[], ["run"], ["tune"], ["look"], ["flops"], ["list"]], ids=" ".join)
def test_help(
    command: list[str], flag: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *command, flag) == 0
    out = capsys.readouterr().out
    assert "Usage" in out
    assert ("--json" in out) == bool(command)
