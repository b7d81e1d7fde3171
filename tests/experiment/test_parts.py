"""Long runs: a part of an experiment, what would run, and what a full disk or a kill leaves."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.toy import ToyModel, ToyTask, completed, config
from tokenprune.errors import ConfigError, OutputError
from tokenprune.experiment import markdown, run_experiment, write_report
from tokenprune.experiment.answers import Answers
from tokenprune.experiment.asking import Asking
from tokenprune.experiment.dry_run import plan_experiment
from tokenprune.experiment.part import Part
from tokenprune.experiment.results import Results
from tokenprune.output import folder as folders
from tokenprune.output import lines

FILES = ("samples.jsonl", "report.md", "summary.json", "config.yaml", "choices.json", "series.json", "left_out.json")
SERIES = 1 + 2 * (1 + 2 + 1)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.mark.slow
def test_a_limited_run_is_a_prefix_that_the_whole_run_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(completed(tmp_path / "whole"))
    limited = run_experiment(config(str(tmp_path / "parts")), part=Part(limit=12))  # two batches of 5, and 2 samples
    assert {row["position"] for row in limited.rows} == set(range(12))
    assert "12 questions on 6 pictures" in markdown(limited)
    answered: list[int] = []
    answer = Asking.answer
    monkeypatch.setattr(
        Asking,
        "answer",
        lambda self, item, works: (answered.append(works[0].batch.number), answer(self, item, works))[1],
    )
    write_report(run_experiment(config(str(tmp_path / "parts"))))
    assert set(answered) == {2, 3, 4}  # the batch that was cut short is answered again, whole
    for name in ("report.md", "summary.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    answered.clear()
    assert len(run_experiment(config(str(tmp_path / "parts")), part=Part(limit=12)).rows) == 12 * SERIES
    assert not answered
    assert "12 questions" in markdown(run_experiment(config(str(tmp_path / "parts")), part=Part(limit=12)))


def test_a_path_is_no_experiment() -> None:
    with pytest.raises(ConfigError, match=r"needs an ExperimentConfig, got str; use tp.ExperimentConfig.from_yaml"):
        run_experiment("examples/demo.yaml")  # type: ignore[arg-type]


def test_only_some_methods(tmp_path: Path) -> None:
    result = run_experiment(config(str(tmp_path)), part=Part(only=("norm-hidden-large",)))
    assert {row["method"] for row in result.rows} == {"unpruned", "norm-hidden-large"}
    with pytest.raises(ConfigError, match="has no method 'norm-hidden-larg'; did you mean 'norm-hidden-large'"):
        run_experiment(config(str(tmp_path)), part=Part(only=("norm-hidden-larg",)))


def test_the_order_of_rows_changes_no_figure(tmp_path: Path) -> None:
    rows = completed(tmp_path).rows
    for row in rows:  # sums of such numbers depend on their order, unless they are exact
        row["score"] = 1 / (3 + row["position"])
        row["layer_average"] = 10.0 ** (row["position"] % 20) + 0.1 * row["position"]
    forwards, backwards = Answers.read(rows), Answers.read(rows[::-1])
    for method, budget in forwards.methods():
        one, other = forwards.of(method, budget), backwards.of(method, budget)
        assert one.accuracy() == other.accuracy()
        assert one.layer_average() == other.layer_average()
        assert one.accuracy_of_type("odd") == other.accuracy_of_type("odd")


def test_a_plan_writes_nothing(tmp_path: Path) -> None:
    plan = plan_experiment(config(str(tmp_path / "out"), timing=2, examples=1), Part(limit=11))
    assert not (tmp_path / "out").exists()
    assert plan.questions == 11
    assert plan.batch_size == 5
    assert plan.series[0].key == "unpruned"
    assert len(plan.series) == SERIES
    assert {item.batches for item in plan.series} == {3}
    assert {item.forwards for item in plan.series} == {6}
    assert plan.series[1].layers == (2,)
    assert plan.seconds > plan.timing_seconds + plan.example_seconds > plan.example_seconds > 0
    run_experiment(config(str(tmp_path / "out")), part=Part(limit=10))
    before = contents_of(tmp_path / "out")
    assert {item.batches for item in plan_experiment(config(str(tmp_path / "out"))).series} == {3}  # of five
    assert contents_of(tmp_path / "out") == before


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_a_run_that_fails_before_its_first_answer_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: ToyModel) -> Any:
        raise ConfigError("no such checkpoint")

    with monkeypatch.context() as patch:
        patch.setattr(ToyModel, "load", fail)
        with pytest.raises(ConfigError, match="no such checkpoint"):
            run_experiment(config(str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    run_experiment(config(str(tmp_path / "out"), max_new_tokens=1))  # another configuration may have the folder


def test_a_method_that_cannot_run_stops_the_run_before_the_first_answer(tmp_path: Path) -> None:
    evs = {"name": "evs", "label": "video method"}
    with pytest.raises(Exception, match=r"method 'video method' with budget 'keep_ratio 0\.5'") as caught:
        run_experiment(config(str(tmp_path / "out"), methods=["norm-hidden-large", evs]))
    assert not (tmp_path / "out").exists()
    assert getattr(caught.value, "code", None)


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.slow
def test_a_full_disk_is_one_error_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(completed(tmp_path / "whole"))
    folder = tmp_path / "out"
    calls = iter(range(100))
    sync = folders.os.fsync

    def sometimes(handle: int) -> None:
        if next(calls) == 7:
            full()
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(folders.os, "fsync", sometimes)
        with pytest.raises(OutputError, match=r"the disk that holds .* is full; free some space and run the same"):
            run_experiment(config(str(folder)))
    assert 0 < len((folder / "samples.jsonl").read_text().splitlines()) < 24 * SERIES
    write_report(run_experiment(config(str(folder))))
    assert (folder / "report.md").read_bytes() == (tmp_path / "whole" / "report.md").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(folders.os, "replace", full)
        with pytest.raises(OutputError, match="is full"):
            write_report(run_experiment(config(str(folder))))
    assert not list(folder.glob("*.partial"))


def test_a_nul_in_the_folder_is_one_error() -> None:
    with pytest.raises(OutputError, match=r"'a\\x00b' has a NUL character; choose another"):
        Results("a\0b")


@pytest.mark.parametrize("content", ["", "model: [", "- 1\n", "\x00", "just text"])
def test_a_damaged_config_in_the_folder_is_one_error(tmp_path: Path, content: str) -> None:
    completed(tmp_path)
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(OutputError, match=r"config\.yaml is damaged"):
        run_experiment(config(str(tmp_path)))


def test_result_files_are_json(tmp_path: Path) -> None:
    """One picture has no interval, and a family without a closed form no FLOPs: null, never a bare NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    write_report(run_experiment(config(str(tmp_path), task=ToyTask(questions=2))))
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert summary[0]["accuracy"]["low"] is None
    for text in (tmp_path / "samples.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=refuse)


def test_numbers_that_json_does_not_have() -> None:
    assert lines.json_ready({"a": [float("nan"), 1.5, (float("inf"), "x")], "b": 2}) == {
        "a": [None, 1.5, [None, "x"]],
        "b": 2,
    }


def rewritten(folder: Path, change: Any) -> Sequence[dict[str, Any]]:
    path = folder / "samples.jsonl"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    Results(folder).recover(24, 5)
    return list(Results(folder).rows())


def test_recovery_removes_what_is_incomplete_and_nothing_else(tmp_path: Path) -> None:
    completed(tmp_path)
    rows = list(Results(tmp_path).rows())
    assert rewritten(tmp_path, lambda lines: [*lines, *lines[:3]]) == rows  # twice
    assert rewritten(tmp_path, lambda lines: [*lines, '{"series": "unpruned", "pos']) == rows  # torn
    assert rewritten(tmp_path, lambda lines: ["[1]\n", "null\n", *lines]) == rows
    assert rewritten(tmp_path, lambda lines: lines[1:]) == rows[5:]  # the first batch lacks a row
    # the last batch, of four rows, lacks its line end: another row would be written behind it
    assert rewritten(tmp_path, lambda lines: [*lines[:-1], lines[-1].rstrip("\n")]) == rows[5:-4]
