"""Workers of a tune: the files are those of one process, whatever dies meanwhile."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import deadly
from tests.support.toy import ToyTask
from tests.support.workers import Inline, Threads, alive, driver, wait_for
from tests.tuning.planted import BUDGET, config
from tokenprune.errors import ConfigError, ForwardError, OutputError
from tokenprune.executors.base import Workers
from tokenprune.executors.local import Local
from tokenprune.executors.service import Message, Setup
from tokenprune.tuning import TuneResult, run_tune
from tokenprune.tuning.measuring import Facts

BUDGETS = [BUDGET, {"name": "layer_average", "tokens": 6}]
#: The files whose bytes are compared. `run.json` and a line of `report.md` also say how long the tune took.
FILES = ("samples.jsonl", "report.md", "tune.jsonl", "candidates.json", "entropy.json", "origin.json", "tune.json")


def contents(folder: Path) -> dict[str, bytes]:
    names = [*FILES, *(path.name for path in folder.glob("tuned*.yaml"))]
    return {name: without_time((folder / name).read_bytes()) for name in names}


def without_time(data: bytes) -> bytes:
    """Reports say how long the tune took."""
    return b"\n".join(line for line in data.splitlines() if b" seconds" not in line)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def assert_same(folder: Path, other: Path) -> None:
    assert contents(folder) == contents(other)
    hidden = [path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock"]
    assert not hidden


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tune of two budgets in one process."""
    folder = tmp_path_factory.mktemp("tune") / "whole"
    run_tune(config(str(folder), budget=None, budgets=BUDGETS, first=4))
    return folder


def shared(folder: Path, executor: Any, workers: int, **changes: Any) -> TuneResult:
    made = config(str(folder), **{"budget": None, "budgets": BUDGETS, "first": 4, **changes})
    return run_tune(made, executor=executor, workers=workers)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_files_are_those_of_one_process(tmp_path: Path, whole: Path, count: int) -> None:
    result = shared(tmp_path / "split", Threads(), count)
    assert_same(tmp_path / "split", whole)
    left = [row.left for ranking in result.rankings for row in ranking.ranked]
    assert any(left), "nobody leaves: the race is no race"
    assert None in left


@pytest.mark.parametrize("dies", [(2,), (30,), (4, 5, 40)])
def test_a_worker_that_dies_at_any_message_changes_nothing(tmp_path: Path, whole: Path, dies: tuple[int, ...]) -> None:
    shared(tmp_path / "split", Threads(dies=dies), 2)
    assert_same(tmp_path / "split", whole)


def test_scores_of_answers(tmp_path: Path) -> None:
    changes = {"labels": True, "methods": ["fastv"], "samples": 8, "first": 4}
    run_tune(config(str(tmp_path / "whole"), **changes))
    run_tune(config(str(tmp_path / "split"), **changes), executor=Threads(), workers=2)
    assert_same(tmp_path / "split", tmp_path / "whole")


class StopError(Exception):
    pass


@pytest.mark.parametrize("workers", [None, 3])
def test_a_stopped_tune_goes_on_with_other_workers_or_none(tmp_path: Path, whole: Path, workers: int | None) -> None:
    calls = iter(range(1000))

    def stopping(*_: Any) -> None:
        if next(calls) == 17:
            raise StopError

    made = config(str(tmp_path / "split"), budget=None, budgets=BUDGETS, first=4)
    with pytest.raises(StopError):
        run_tune(made, stopping, executor=Threads(), workers=2)
    assert 0 < len(rows(tmp_path / "split")) < len(rows(whole))
    run_tune(made, executor=None if workers is None else Threads(), workers=workers)
    assert_same(tmp_path / "split", whole)


def test_progress_never_goes_back_and_ends_with_the_tune(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    made = config(str(tmp_path / "split"), budget=None, budgets=BUDGETS, first=4)
    run_tune(made, lambda *step: seen.append(step), executor=Threads(), workers=2)
    shares = [done / total for _, done, total in seen]
    assert shares == sorted(shares)
    assert shares[-1] == 1


class Deaths(Threads):
    """Workers die when they measure one method on a batch, always."""

    method: str
    batch: int

    def open(self, count: int, setup: Setup) -> Workers:
        return Killing(setup, self.method, self.batch)


class Killing(Inline):
    def __init__(self, setup: Setup, method: str, batch: int) -> None:
        super().__init__(setup, set())
        self.key = (method, batch)

    def carried_out(self, number: int, order: Any) -> list[tuple[int, Message]]:
        found = super().carried_out(number, order)
        for index, (_, message) in enumerate(found):
            content = message.content
            if message.kind == "report" and (getattr(content, "key", ""), getattr(content, "number", 0)) == self.key:
                self.stop(number)
                return [*found[:index], (number, Message("ended", "was killed by SIGKILL"))]
        return found


def test_a_method_that_always_kills_its_worker_cannot_run(tmp_path: Path, whole: Path) -> None:
    alone = [row for row in rows(whole) if row["budget"] == "layer_average 0.5"]
    killer = next(row["candidate"] for row in alone if row["batch"] == 1)
    result = shared(tmp_path / "split", Deaths(method=killer, batch=1), 2, budgets=BUDGETS[:1])
    reason = result.refused[killer]
    assert reason.startswith("worker ")
    assert "was killed by SIGKILL" in reason
    assert f"cannot run: {killer}: {reason}" in str(result)
    found = rows(tmp_path / "split")
    assert {row["batch"] for row in found if row["candidate"] == killer} == {0}
    assert [row for row in found if row["candidate"] != killer] == [row for row in alone if row["candidate"] != killer]


def test_a_worker_with_other_samples_is_an_error(tmp_path: Path) -> None:
    class Other(Threads):
        def open(self, count: int, setup: Setup) -> Workers:
            return Mixed(setup, set())

    class Mixed(Inline):
        def receive(self, seconds: float) -> Sequence[tuple[int, Message]]:
            found = super().receive(seconds)
            for number, message in found:
                if message.kind == "ready" and number == 1:  # the first to be ready
                    facts: Facts = message.content
                    other = tuple(str(print_)[:-1] + "?" for print_ in facts.batches)
                    return [(number, Message("ready", replace(facts, batches=other)))]
            return found

    with pytest.raises(OutputError, match="workers have read other samples than the first one; let all of them see"):
        shared(tmp_path / "split", Other(), 2)


def test_what_cannot_be_asked_for(tmp_path: Path) -> None:
    made = config(str(tmp_path / "split"))
    with pytest.raises(ConfigError, match="workers are started by an executor, and none is given"):
        run_tune(made, workers=2)
    with pytest.raises(ConfigError, match="unknown executor 'lokal'; did you mean 'local'"):
        run_tune(made, executor="lokal")
    assert not (tmp_path / "split").exists()


# ---- real processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.long
def test_processes_write_what_one_process_writes(tmp_path: Path, whole: Path) -> None:
    shared(tmp_path / "split", Local(), 2)
    assert_same(tmp_path / "split", whole)


@pytest.mark.slow
@pytest.mark.long
def test_a_process_that_is_killed_is_replaced(tmp_path: Path) -> None:
    """The task kills its process when an answer to a sample is scored for the second time."""
    changes = {"labels": True, "methods": ["fastv"], "samples": 8, "first": 4}
    sample = ToyTask().calibration(8)[3].id
    task = deadly.DeadlyTask(sample=sample, once=str(tmp_path / "killed"), nth=2)
    run_tune(config(str(tmp_path / "split"), task=task, **changes), executor=Local(), workers=2)
    assert (tmp_path / "killed").exists()
    run_tune(config(str(tmp_path / "whole"), **changes))
    for name in ("samples.jsonl", "tune.jsonl"):
        assert (tmp_path / "split" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.long
def test_when_every_method_kills_its_process_it_is_one_error(tmp_path: Path) -> None:
    task = deadly.DeadlyTask(sample=ToyTask().calibration(8)[3].id)
    made = config(str(tmp_path / "split"), task=task, labels=True, samples=8, first=4)
    with pytest.raises(
        ForwardError, match=r"was killed by SIGKILL.*(workers die before they have done anything|in a row fail)"
    ):
        run_tune(made, executor=Local(), workers=2)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_driver_and_another_run_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("this system does not show its processes in /proc")
    folder, processes = tmp_path / "split", tmp_path / "processes"
    changes = {"labels": True, "methods": ["fastv", "visionzip"], "samples": 16, "first": 16}
    slow = f"deadly.SlowTask(seconds=0.1, processes={str(processes)!r})"
    code = (
        "from tests.tuning.planted import config\n"
        "from tokenprune.tuning import run_tune\n"
        f"made = config({str(folder)!r}, task={slow}, **{changes})\n"
        "run_tune(made, executor=Local(), workers=2)\n"
    )
    path = folder / "samples.jsonl"
    with driver(code, processes) as process:
        wait_for(lambda: path.exists() and len(path.read_text().splitlines()) > 3)
        assert alive(processes)
        process.send_signal(how)
        process.wait(timeout=60)
        assert process.returncode == (130 if how == signal.SIGINT else -how)
        wait_for(lambda: not alive(processes), 20)
    task = deadly.SlowTask(seconds=0.1, processes=str(processes))
    run_tune(config(str(folder), task=task, **changes), executor=Threads(), workers=2)
    run_tune(config(str(tmp_path / "whole"), **changes))
    for name in ("samples.jsonl", "tune.jsonl"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(folder.glob(".workers-*"))
