"""docs/paper.md is what benchmarks/paper/page.py makes, and says what results say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper.reproduction import page, write
from benchmarks.paper.reproduction.jobs import Job, Plan
from benchmarks.paper.reproduction.published import Figures, Scores, Share, read_figures
from benchmarks.paper.reproduction.results import collect
from benchmarks.paper.reproduction.results import write as write_json
from tests.experiment.test_paper_plan import made
from tokenprune.errors import MissingDataError, TokenPruneError

NAMES = ("llava-1.5-7b", "llava-next-7b", "qwen2.5-vl-7b", "video-llava-7b")
BENCHMARKS = ("gqa", "mme")


@pytest.mark.slow
def test_the_page_is_what_the_command_writes() -> None:
    own, mark, rest = write.PAGE.read_text(encoding="utf-8").partition(write.BEGIN)
    assert mark
    wanted = page.generated({name: made(name) for name in NAMES})
    assert rest == f"\n\n{wanted}", "run `python benchmarks/paper/page.py`"
    assert "have not run these tables" in own


def test_every_published_figure_has_a_source() -> None:
    figures = read_figures()
    assert all(item.source for item in (*figures.scores, *figures.shares))
    paper = [item for item in figures.shares if "2602.17196" in item.source]
    assert [item.percent for item in paper] == [96.0], "of the paper, the abstract alone was read"


def results_json(job: Job, score: float, samples: int | None = None, **changed: Any) -> None:
    """Write what lmms-eval 0.7.3 writes for a job; the score is on the scale of lmms-eval."""
    count = job.benchmark.samples if samples is None else samples
    data = {
        "results": {
            job.benchmark.task: {
                "alias": job.benchmark.task,
                job.benchmark.metric: score,
                "submission,none": None,
                job.benchmark.metric.replace(",", "_stderr,"): "N/A",
            }
        },
        "group_subtasks": {job.benchmark.task: []},
        "configs": {job.benchmark.task: {"task": job.benchmark.task}},
        "versions": {job.benchmark.task: "Yaml"},
        "n-shot": {job.benchmark.task: 0},
        "higher_is_better": {job.benchmark.task: {}},
        "n-samples": {job.benchmark.task: {"original": count, "effective": count}},
        "config": {"model": "tokenprune", "model_args": job.model_args, "limit": job.limit},
        "lmms_eval_version": "0.7.3",
        **changed,
    }
    folder = job.folder / "lmms" / "llava-hf__llava-1.5-7b-hf"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "20260101_000000_results.json").write_text(json.dumps(data), encoding="utf-8")
    write_json(job.folder / "job.json", job.settings)


def in_folder(folder: Path, benchmarks: tuple[str, ...] = BENCHMARKS) -> Plan:
    """The plan of LLaVA-1.5 with some benchmarks, its folders below ``folder``."""
    whole = made("llava-1.5-7b")
    table = whole.table.model_copy(update={"benchmarks": benchmarks})
    jobs = tuple(
        Job(job.row, job.benchmark, job.name, table, folder / job.name)
        for job in whole.jobs
        if job.name.rpartition("/")[2] in benchmarks
    )
    return Plan(table, whole.model, whole.rows, jobs, whole.cannot)


def store(plan: Plan, scores: Mapping[str, float]) -> None:
    jobs = {job.name: job for job in plan.jobs}
    for name, score in scores.items():
        results_json(jobs[name], score)
        assert collect(jobs[name]) is not None


def row_of(text: str, name: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} | ") and line.count("|") == 7]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.slow
def test_results_stand_beside_published_figures(tmp_path: Path) -> None:
    """Scores by hand: (31/62 + 1200/1500) / 2 = 65 % of the unpruned scores, published are 98.1 %."""
    plan = in_folder(tmp_path)
    clse = "clse/published-keep_schedule-220-140-41"
    store(plan, {"unpruned/all/gqa": 0.62, "unpruned/all/mme": 1500.0})
    store(plan, {f"{clse}/gqa": 0.31, f"{clse}/mme": 1200.0, "fastv/average-tokens-128/gqa": 0.5})
    text = "\n\n".join(page._compared("llava-1.5-7b", plan, read_figures(), page.found_results(plan)))
    assert f"Our results: 5 of {len(plan.jobs)} jobs have finished." in text
    assert row_of(text, "unpruned/all") == ["unpruned/all", "576.0", "", "62.0 (+0.0)", "1500.0 (-10.7)", "100.0"]
    assert row_of(text, clse) == [clse, "144.6", "", "31.0", "1200.0", "65.0 (-33.1)"]
    assert row_of(text, "fastv/average-tokens-128")[3:] == ["50.0", "", ""], "no share of one benchmark of two"


@pytest.mark.slow
def test_the_measured_layer_average_is_that_of_a_report_of_all_samples(tmp_path: Path) -> None:
    plan = in_folder(tmp_path)
    jobs = {job.name: job for job in plan.jobs}
    for benchmark, average, missing in (("gqa", 127.5, 0), ("mme", 120.0, 1)):
        job = jobs[f"fastv/average-tokens-128/{benchmark}"]
        results_json(job, 0.5)
        requests = job.benchmark.samples - missing
        report = {"tasks": {job.benchmark.task: {"requests": requests, "average": {"layer_average": average}}}}
        (job.folder / "lmms/llava-hf__llava-1.5-7b-hf/20260101_000001_tokenprune_report.json").write_text(
            json.dumps(report), encoding="utf-8"
        )
        found = collect(job)
        assert found is not None
        assert found.layer_average == (None if missing else average)
    text = "\n\n".join(page._compared("llava-1.5-7b", plan, read_figures(), page.found_results(plan)))
    assert row_of(text, "fastv/average-tokens-128")[1:3] == ["127.9", "127.5"]


@pytest.mark.slow
def test_another_number_of_samples_is_said(tmp_path: Path) -> None:
    plan = in_folder(tmp_path)
    job = next(job for job in plan.jobs if job.name == "unpruned/all/gqa")
    results_json(job, 0.6, samples=12000)
    assert collect(job) is not None
    text = "\n\n".join(page._compared("llava-1.5-7b", plan, read_figures(), page.found_results(plan)))
    assert "gqa had 12000 samples, and this page says 12578." in text


@pytest.mark.slow
def test_the_tasks_of_a_group_are_averaged(tmp_path: Path) -> None:
    """MVBench: two tasks, 50 % of 100 questions and 80 % of 200."""
    plan = made("video-llava-7b")
    job = next(job for job in plan.jobs if job.name == "unpruned/all/mvbench")
    job = Job(job.row, job.benchmark, job.name, job.table, tmp_path)
    tasks = {"mvbench_a": (50.0, 100), "mvbench_b": (80.0, 200)}
    key = job.benchmark.metric
    changed: dict[str, Any] = {
        "results": {
            "mvbench": {" ": " ", "alias": "mvbench"},
            **{name: {key: score} for name, (score, _) in tasks.items()},
        },
        "n-samples": {name: {"original": count, "effective": count} for name, (_, count) in tasks.items()},
    }
    results_json(job, 0, **changed)
    found = collect(job)
    assert found is not None
    assert (found.score, found.samples) == (70.0, 300)
    del changed["results"]["mvbench_b"]
    results_json(job, 0, **changed)
    with pytest.raises(TokenPruneError, match="no score 'mvbench_accuracy,none' of mvbench_b"):
        collect(job)


@pytest.mark.slow
@pytest.mark.parametrize(
    "figures",
    [
        Figures(scores=(Scores(table="llava-1.5-7b", row="fastw/all", values={"gqa": 1}, source="x"),), shares=()),
        Figures(scores=(Scores(table="llava-1.5-7b", row="unpruned/all", values={"gaq": 1}, source="x"),), shares=()),
        Figures(scores=(), shares=(Share(table="llava", row="unpruned/all", percent=1, source="x"),)),
    ],
)
def test_figures_of_rows_that_are_not_there_are_an_error(figures: Figures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "read_figures", lambda: figures)
    with pytest.raises(TokenPruneError, match=r"published\.yaml"):
        page.generated({"llava-1.5-7b": made("llava-1.5-7b")})


def test_a_folder_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="there is no folder"):
        write.main("", ["--results", str(tmp_path / "nothing")])


@pytest.mark.slow
def test_the_command_writes_results_into_another_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = in_folder(tmp_path / "llava-1.5-7b", made("llava-1.5-7b").table.benchmarks)
    store(plan, {"unpruned/all/gqa": 0.619})
    monkeypatch.setattr(
        write, "plans", lambda output, calibration: {name: made(name) for name in NAMES} | {"llava-1.5-7b": plan}
    )
    before = write.PAGE.read_bytes()
    write.main("", ["--results", str(tmp_path), "--output", str(tmp_path / "page.md")])
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "| 61.9 (-0.1) |" in text
    assert "that the unpruned model has finished (gqa)" in text
    assert text.count("jobs have finished") == len(NAMES)
    assert write.PAGE.read_bytes() == before
