"""Jobs of the paper's tables, run with a stand-in for lmms-eval: they go on, they fail by name, they mix nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from benchmarks.paper.reproduction import command, plan, results, work
from benchmarks.paper.reproduction.architecture import architecture
from tests.support import lmms_stub as stub
from tokenprune.errors import MissingDataError, TokenPruneError

ROOT = Path(__file__).parents[2]
TABLE = {
    "title": "small",
    "paper": "none",
    "checkpoint": "llava-hf/llava-1.5-7b-hf",
    "architecture": "llava-1.5-7b",
    "visual_tokens": 576,
    "visual_note": "as it is",
    "batch_size": 2,
    "benchmarks": ["gqa", "mme"],
    "budgets": [{"average_tokens": 128}],
    "methods": [{"name": "fastv"}, {"name": "random", "seeds": [1]}],
}
Run = Callable[..., int]
#: One model for all tests: nothing changes it.
MODEL = cache(architecture)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The stand-in on the path, a table of six jobs, and the file that says what tasks do."""
    stub.install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "small.yaml").write_text(yaml.safe_dump(TABLE), encoding="utf-8")
    monkeypatch.setattr(plan, "TABLES", tables)
    monkeypatch.setattr(command, "architecture", MODEL)
    file = tmp_path / "stub" / "words.json"
    stub.script(file, {})
    monkeypatch.setenv("LMMS_STUB", str(file))
    yield file
    sys.modules.pop("lmms_eval", None)


@pytest.fixture
def run(script: Path, tmp_path: Path) -> Run:
    return lambda *options: command.main("", ["small", "--output", str(tmp_path / "out"), *options])


def test_a_finished_job_is_not_run_again(run: Run, script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert len(stub.calls(script)) == 6
    printed = capsys.readouterr().out
    assert "fastv/average-tokens-128/gqa: 61.90 (12578 samples)" in printed
    assert "unpruned/all/mme: 1500.00 (2374 samples)" in printed
    assert run() == 0
    assert len(stub.calls(script)) == 6
    assert "random/average-tokens-128-seed-1/gqa: 61.90" in capsys.readouterr().out


def test_what_lmms_eval_is_told(run: Run, script: Path) -> None:
    assert run("--only", "random/*/gqa", "--limit", "8") == 0
    ((args, task, gpus, _),) = stub.calls(script)
    assert args == "pretrained=llava-hf/llava-1.5-7b-hf,method=random,average_tokens=128,seed=1"
    assert (task, gpus) == ("gqa", None)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (stub.FAILS, "exit code 1: error: model_args: unknown name 'x'"),
        (stub.NOTHING, "exit code 0 and wrote no results"),
        (stub.NAN, "the score of mme is nan, and no number"),
        (stub.FEW, "2373 of 2374 samples of mme were answered"),
    ],
)
def test_a_job_that_fails_is_named_and_the_others_go_on(
    word: str, message: str, run: Run, script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.script(script, {"mme": word})
    assert run() == 1
    out, err = capsys.readouterr()
    assert out.count("61.90 (12578 samples)") == 3
    assert err.splitlines()[0] == "3 of 6 jobs failed:"
    assert err.splitlines()[1].startswith("unpruned/all/mme: ")
    assert message in err
    stub.script(script, {})
    assert run() == 0
    assert len(stub.calls(script)) == 9


def test_limited_results_have_folders_of_their_own(run: Run, script: Path, tmp_path: Path) -> None:
    assert run("--limit", "8", "--only", "fastv/*") == 0
    assert run("--only", "fastv/*") == 0
    assert len(stub.calls(script)) == 4
    done = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("done.json"))
    assert done == [
        f"{table}/fastv/average-tokens-128/{name}/done.json"
        for table in ("small-limit-8", "small")
        for name in ("gqa", "mme")
    ]
    assert json.loads((tmp_path / "out" / done[0]).read_text())["samples"] == 8


def test_results_of_other_settings_are_refused(
    run: Run, script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--only", "fastv/*/gqa") == 0
    (plan.TABLES / "small.yaml").write_text(
        yaml.safe_dump({**TABLE, "model_args": {"dtype": "float32"}}), encoding="utf-8"
    )
    assert run("--only", "fastv/*/gqa") == 1
    assert "holds results of other settings: model_args was 'pretrained=" in capsys.readouterr().err
    assert len(stub.calls(script)) == 1


def test_files_of_something_else_are_refused(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out" / "small" / "fastv" / "average-tokens-128" / "gqa"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    assert run("--only", "fastv/*/gqa") == 1
    assert "holds files, and no job.json" in capsys.readouterr().err


def test_results_json_of_another_job_is_refused(
    run: Run, script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody copies results into the folder: they are not taken for ours."""
    assert run("--only", "*/gqa") == 0
    base = tmp_path / "out" / "small"
    mine, other = base / "fastv/average-tokens-128/gqa", base / "unpruned/all/gqa"
    (mine / "done.json").unlink()
    name = "lmms/llava-hf__llava-1.5-7b-hf/20260101_000000_results.json"
    (mine / name).write_bytes((other / name).read_bytes())
    assert run("--only", "fastv/*/gqa") == 1
    assert "has model_args 'pretrained=llava-hf/llava-1.5-7b-hf,method=unpruned'" in capsys.readouterr().err


def test_a_half_written_result_is_no_result(run: Run, script: Path, tmp_path: Path) -> None:
    """The job was killed while lmms-eval wrote its JSON: it runs again."""
    assert run("--only", "fastv/*/gqa") == 0
    folder = tmp_path / "out/small/fastv/average-tokens-128/gqa"
    (folder / "done.json").unlink()
    file = folder / "lmms/llava-hf__llava-1.5-7b-hf/20260101_000000_results.json"
    file.write_text(file.read_text(encoding="utf-8")[:100], encoding="utf-8")
    assert run("--only", "fastv/*/gqa") == 0
    assert len(stub.calls(script)) == 2


def test_broken_json_is_one_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--only", "fastv/*/gqa") == 0
    (tmp_path / "out/small/fastv/average-tokens-128/gqa/done.json").write_text("{", encoding="utf-8")
    assert run("--only", "fastv/*/gqa") == 1
    err = capsys.readouterr().err
    assert "done.json is broken" in err
    assert len(err.splitlines()) == 2


def test_workers_have_gpus_of_their_own(run: Run, script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
    assert run("--workers", "2") == 0
    assert {gpus for _, _, gpus, _ in stub.calls(script)} <= {"4", "6"}
    assert len(stub.calls(script)) == 6
    with pytest.raises(TokenPruneError, match="--workers 4, and CUDA_VISIBLE_DEVICES names 3 GPUs"):
        run("--workers", "4")
    with pytest.raises(TokenPruneError, match="--workers 0"):
        run("--workers", "0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert work.devices(3) == ["0", "1", "2"]
    assert work.devices(1) == [None]


@pytest.mark.parametrize("option", [["--only", "fastw/*"], ["--limit", "0"], ["--limit", "-3"]])
def test_wrong_options_are_one_clear_error(option: list[str], run: Run) -> None:
    with pytest.raises(TokenPruneError, match=option[0]):
        run(*option)


def test_jobs_that_lack_something_say_what(run: Run, script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = {
        **TABLE,
        "benchmarks": ["mmbench-cn"],
        "methods": [{"name": "entropyprune", "calibrated": True, "settings": "own"}],
    }
    (plan.TABLES / "small.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    assert run() == 1
    assert capsys.readouterr().err.count("mmbench_cn_dev asks a judge; set OPENAI_API_KEY") == 2
    changed["benchmarks"] = ["gqa"]
    (plan.TABLES / "small.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
    assert run() == 1
    assert "entropyprune measures the model; give --calibration DATA" in capsys.readouterr().err
    assert run("--calibration", "pictures") == 0
    assert stub.calls(script)[-1][0].endswith("method=entropyprune,average_tokens=128,calibration=pictures")


def test_missing_lmms_eval_is_one_clear_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site" / "tokenprune_lmms_eval-0.1.0.dist-info" / "entry_points.txt").unlink()
    with pytest.raises(MissingDataError, match="the plugin tokenprune-lmms-eval is not installed"):
        run()
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path / "site")])
    with pytest.raises(MissingDataError, match="lmms_eval is not installed for this Python; run the driver with"):
        run()


# ---- processes that are killed ---------------------------------------------------------------------------------


@contextlib.contextmanager
def driver(tmp_path: Path, script: Path) -> Iterator[subprocess.Popen[str]]:
    """The driver as a process of its own, on the small table, with the stand-in."""
    code = (
        "import sys; from pathlib import Path; from benchmarks.paper.reproduction import command, plan;"
        "from tokenprune.cli.failures import reported\n"
        "plan.TABLES = Path(sys.argv[1])\n"
        "with reported(): sys.exit(command.main('', sys.argv[2:]))"
    )
    options = ["small", "--output", str(tmp_path / "out"), "--only", "fastv/*"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(plan.TABLES), *options],
        env={**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def until(true: Callable[[], bool]) -> None:
    for _ in range(1200):
        if true():
            return
        time.sleep(0.1)
    pytest.fail("it did not happen")


def says(tmp_path: Path, benchmark: str, text: str) -> bool:
    log = tmp_path / "out/small/fastv/average-tokens-128" / benchmark / "lmms.log"
    return log.is_file() and text in log.read_text(encoding="utf-8")


@pytest.mark.slow
def test_an_interrupted_driver_ends_its_jobs_and_goes_on(run: Run, script: Path, tmp_path: Path) -> None:
    stub.script(script, {"mme": stub.WAITS})
    with driver(tmp_path, script) as process:
        until(lambda: says(tmp_path, "mme", "waiting"))
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "finished jobs are kept; the same command goes on" in err
    assert run("--only", "fastv/*") == 0  # the claim is free: the job has ended, too
    tasks = [task for _, task, *_ in stub.calls(script)]
    assert tasks == ["gqa", "mme", "mme"]


@pytest.mark.slow
def test_what_a_killed_driver_leaves_running_is_not_run_twice(
    run: Run, script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.script(script, {"mme": stub.LINGERS})
    with driver(tmp_path, script) as process:
        until(lambda: says(tmp_path, "mme", "written"))
        process.kill()
        process.wait()
    assert run("--only", "fastv/*") == 1
    assert "another process works in" in capsys.readouterr().err
    os.kill(stub.calls(script)[-1][3], signal.SIGKILL)
    until(lambda: run("--only", "fastv/*") == 0)  # its results were complete: they are taken, and nothing runs again
    assert [task for _, task, *_ in stub.calls(script)] == ["gqa", "mme"]


@pytest.mark.slow
def test_a_job_that_is_killed_goes_on_with_its_answers(run: Run, script: Path, tmp_path: Path) -> None:
    stub.script(script, {"mme": stub.WAITS})
    with driver(tmp_path, script) as process:
        until(lambda: says(tmp_path, "mme", "waiting"))
        os.kill(stub.calls(script)[-1][3], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "fastv/average-tokens-128/mme: lmms-eval ended with exit code -9" in err
    folder = tmp_path / "out/small/fastv/average-tokens-128/mme"
    assert (folder / "cache").is_dir()
    assert not (folder / results.DONE).exists()
    assert run("--only", "fastv/*") == 0
    assert len(stub.calls(script)) == 3
