"""Workers as actors of Ray, and as jobs of submitit: the files are those of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.experiment.test_executors import SERIES, assert_same, tables
from tests.support import deadly
from tests.support.toy import ToyTask, completed, config
from tests.support.workers import alive, wait_for
from tests.tuning import planted
from tests.tuning.test_executors import assert_same as assert_same_tune
from tokenprune import run_experiment, run_tune
from tokenprune.authoring import ConfigError, MissingDataError
from tokenprune_cluster.mailbox import Letters, Pulse, Watch
from tokenprune_cluster.submitit import Submitit

JOBS = {"name": "submitit", "cluster": "local", "gpus": 0, "cpus": 1, "patience": 15.0}
ACTORS = {"name": "ray", "gpus": 0, "cpus": 0.5}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The folder of one process."""
    tables(completed(tmp_path / "whole", task=ToyTask(questions=200), batch_size=8))
    return tmp_path / "whole"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("executor", [ACTORS, JOBS], ids=["ray", "submitit"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_workers_write_what_one_process_writes(
    tmp_path: Path, whole: Path, executor: dict[str, Any], count: int, short_paths: None
) -> None:
    made = config(str(tmp_path / "split"), task=ToyTask(questions=200), batch_size=8)
    tables(run_experiment(made, executor=executor, workers=count))
    assert_same(tmp_path / "split", whole)


@pytest.fixture
def short_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets of Ray lie in its temporary folder, and their paths must be short."""
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("executor", [ACTORS, JOBS], ids=["ray", "submitit"])
def test_a_worker_that_is_killed_is_replaced(tmp_path: Path, executor: dict[str, Any], short_paths: None) -> None:
    task = deadly.DeadlyTask(sample="s17", once=str(tmp_path / "killed"), nth=3)
    tables(completed(tmp_path / "whole"))
    tables(run_experiment(config(str(tmp_path / "split"), task=task), executor=executor, workers=2))
    assert (tmp_path / "killed").exists()
    for name in ("samples.jsonl", "report.md"):
        assert (tmp_path / "split" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("executor", [ACTORS, JOBS], ids=["ray", "submitit"])
def test_workers_end_with_their_driver_and_another_executor_goes_on(
    tmp_path: Path, executor: dict[str, Any], short_paths: None
) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("this system does not show its processes in /proc")
    folder, processes = tmp_path / "split", tmp_path / "processes"
    processes.mkdir()
    code = (
        "from tests.support import toy, deadly\n"
        "from tokenprune.experiment import run_experiment\n"
        f"task = deadly.SlowTask(seconds=0.05, processes={str(processes)!r})\n"
        f"run_experiment(toy.config({str(folder)!r}, task=task), executor={executor!r}, workers=2)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3])
    try:
        path = folder / "samples.jsonl"
        wait_for(lambda: path.exists() and len(path.read_text().splitlines()) > 10)
        assert alive(processes)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for(lambda: not alive(processes), 60)
    assert 0 < len((folder / "samples.jsonl").read_text().splitlines()) < 24 * SERIES
    task = deadly.SlowTask(seconds=0.0, processes=str(processes))
    stored = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(stored.replace("seconds: 0.05", "seconds: 0.0"))
    tables(run_experiment(config(str(folder), task=task), executor="local", workers=1))
    tables(completed(tmp_path / "whole"))
    for name in ("samples.jsonl", "report.md"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(folder.glob(".workers-*")), "files of the dead driver are still there"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("executor", [ACTORS, JOBS], ids=["ray", "submitit"])
def test_a_tune_writes_what_one_process_writes(tmp_path: Path, executor: dict[str, Any], short_paths: None) -> None:
    changes = {"methods": ["fastv", "visionzip", "divprune"], "samples": 16, "first": 4}
    run_tune(planted.config(str(tmp_path / "split"), **changes), executor=executor, workers=2)
    run_tune(planted.config(str(tmp_path / "whole"), **changes))
    assert_same_tune(tmp_path / "split", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("executor", [ACTORS, JOBS], ids=["ray", "submitit"])
def test_a_killed_worker_of_a_tune_is_replaced(tmp_path: Path, executor: dict[str, Any], short_paths: None) -> None:
    """The task kills its process when an answer to a sample is scored for the second time."""
    changes = {"labels": True, "methods": ["fastv"], "samples": 8, "first": 4}
    sample = ToyTask().calibration(8)[3].id
    task = deadly.DeadlyTask(sample=sample, once=str(tmp_path / "killed"), nth=2)
    run_tune(planted.config(str(tmp_path / "split"), task=task, **changes), executor=executor, workers=2)
    assert (tmp_path / "killed").exists()
    run_tune(planted.config(str(tmp_path / "whole"), **changes))
    for name in ("samples.jsonl", "tune.jsonl"):
        assert (tmp_path / "split" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_ray_with_too_little_is_one_line(tmp_path: Path, short_paths: None) -> None:
    with pytest.raises(ConfigError, match=r"900 workers with 1 CPU each need 900, and Ray has \d+; ask for fewer"):
        run_experiment(config(str(tmp_path / "out"), task=ToyTask(questions=4500)), executor="ray", workers=900)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("executor", "name", "extra"), [("ray", "ray", "ray"), ("submitit", "submitit", "slurm")])
def test_a_missing_package_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str, name: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingDataError, match=rf"needs the package '{name}'.*pip install 'tokenprune-cluster\[{extra}\]"
    ):
        run_experiment(config(str(tmp_path / "out")), executor=executor)
    assert not (tmp_path / "out").exists()


def test_submitit_without_slurm_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="there is no Slurm on this machine; run it where sbatch is"):
        run_experiment(config(str(tmp_path / "out")), executor="submitit", workers=2)
    wrong = Submitit(cluster="local", parameters={"slurm_partitoin": "gpu"})
    with pytest.raises(ConfigError, match="submitit refuses"):
        run_experiment(config(str(tmp_path / "out")), executor=wrong, workers=2)
    assert not (tmp_path / "out").exists()


def test_letters_are_read_once_and_whole(tmp_path: Path) -> None:
    ours, theirs = Letters(tmp_path / "letters"), Letters(tmp_path / "letters")
    assert theirs.read() == []
    ours.append({"a": 1})
    ours.append("b" * 100_000)
    assert theirs.read() == [{"a": 1}, "b" * 100_000]
    assert theirs.read() == []
    whole = (tmp_path / "letters").read_bytes()
    ours.append([1, 2, 3])
    longer = (tmp_path / "letters").read_bytes()
    for end in range(len(whole), len(longer)):
        (tmp_path / "letters").write_bytes(longer[:end])  # as a network disk may show it
        assert theirs.read() == []
    (tmp_path / "letters").write_bytes(longer)
    assert theirs.read() == [[1, 2, 3]]


def test_a_pulse_is_seen_by_its_changes(tmp_path: Path) -> None:
    now = [0.0]
    watch = Watch(tmp_path / "pulse", lambda: now[0])
    now[0] = 5
    assert watch.silent() == 5  # it has never beaten
    (tmp_path / "pulse").write_text("1")
    assert watch.silent() == 0
    now[0] = 12
    assert watch.silent() == 7
    os.utime(tmp_path / "pulse")  # times of files are those of another machine
    assert watch.silent() == 7
    (tmp_path / "pulse").write_text("2")
    assert watch.silent() == 0
    pulse = Pulse(tmp_path / "other", 0.01)
    pulse.start()
    other = tmp_path / "other"
    wait_for(lambda: other.exists() and json.loads(other.read_text() or "0") > 2)
    pulse.stop()
    stopped = (tmp_path / "other").read_text()
    time.sleep(0.05)
    assert (tmp_path / "other").read_text() == stopped
