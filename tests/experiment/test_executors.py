"""Workers of an experiment: the files are those of one process, whatever dies meanwhile."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import deadly
from tests.support.toy import ToyTask, completed, config
from tests.support.workers import Inline, Threads, alive, driver, wait_for
from tokenprune.core.plugins import builtin_only
from tokenprune.errors import ConfigError, ForwardError, OutputError, TokenPruneError
from tokenprune.executors.base import Workers
from tokenprune.executors.local import Local
from tokenprune.executors.service import Message, Service, Setup, packed, serve, unpacked
from tokenprune.experiment import ExperimentResult, markdown, run_experiment, write_report
from tokenprune.experiment.part import Part
from tokenprune.experiment.steps import Loaded
from tokenprune.output import folder as folders

#: Everything that two runs may not differ in.
FILES = ("samples.jsonl", "report.md", "choices.json", "series.json", "left_out.json", "run.json")
FILES += ("origin.json", "fingerprints.json", "environment.json")
SERIES = 1 + 2 * (1 + 2 + 1)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (*FILES, *optional(folder))}


def tables(result: ExperimentResult) -> None:
    """Write the tables of a result; the charts would take seconds."""
    (Path(result.folder) / "report.md").write_text(markdown(result))


def optional(folder: Path) -> list[str]:
    return [name for name in ("skipped.jsonl", "examples.json") if (folder / name).exists()]


def assert_same(folder: Path, other: Path) -> None:
    assert contents(folder) == contents(other)
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".") and path.name != ".lock"]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_files_are_those_of_one_process(tmp_path: Path, count: int) -> None:
    changes = {"examples": 2, "batch_size": 3}
    tables(completed(tmp_path / "whole", **changes))
    tables(run_experiment(config(str(tmp_path / "split"), **changes), executor=Threads(), workers=count))
    assert_same(tmp_path / "split", tmp_path / "whole")


@pytest.mark.parametrize("dies", [(3,), (20,), (5, 6, 30)])
def test_a_worker_that_dies_at_any_message_changes_nothing(tmp_path: Path, dies: tuple[int, ...]) -> None:
    tables(completed(tmp_path / "whole"))
    tables(run_experiment(config(str(tmp_path / "split")), executor=Threads(dies=dies), workers=2))
    assert_same(tmp_path / "split", tmp_path / "whole")


def test_a_task_without_labels_and_a_worker_that_dies(tmp_path: Path) -> None:
    """The other series need the unpruned model's answers, which the dead worker gave."""
    task = deadly.LabelFreeTask()
    tables(run_experiment(config(str(tmp_path / "whole"), task=task, divergence=True)))
    made = config(str(tmp_path / "split"), task=task, divergence=True)
    tables(run_experiment(made, executor=Threads(dies=(4, 22)), workers=2))
    assert_same(tmp_path / "split", tmp_path / "whole")


class StopError(Exception):
    pass


def stop_at(step: int) -> Callable[[str, int, int], None]:
    def progress(name: str, done: int, total: int) -> None:
        if done == step:
            raise StopError

    return progress


def test_one_process_goes_on_where_workers_were_stopped_and_the_other_way_round(tmp_path: Path) -> None:
    tables(completed(tmp_path / "whole"))
    made = config(str(tmp_path / "split"))
    with pytest.raises(StopError):
        run_experiment(made, stop_at(12), executor=Threads(), workers=3)
    with pytest.raises(StopError):
        run_experiment(made, stop_at(20))
    with pytest.raises(StopError):
        run_experiment(made, stop_at(31), executor=Threads(), workers=2)
    tables(run_experiment(made))
    assert_same(tmp_path / "split", tmp_path / "whole")


def test_a_part_first_and_the_whole_then(tmp_path: Path) -> None:
    tables(completed(tmp_path / "whole"))
    made = config(str(tmp_path / "split"))
    part = Part(limit=12, only=("norm-hidden-large",))
    run_experiment(made, part=part, executor=Threads(), workers=2)
    tables(run_experiment(made, executor=Threads(), workers=2))
    for name in ("samples.jsonl", "report.md"):
        assert (tmp_path / "split" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_samples_that_cannot_be_used_are_left_out_as_by_one_process(tmp_path: Path) -> None:
    task = UnreadableTask(bad=(3, 11, 22))
    tables(run_experiment(config(str(tmp_path / "whole"), task=task, batch_size=2)))
    tables(run_experiment(config(str(tmp_path / "split"), task=task, batch_size=2), executor=Threads(), workers=3))
    assert_same(tmp_path / "split", tmp_path / "whole")
    assert (tmp_path / "split" / "skipped.jsonl").exists()


class UnreadableTask(ToyTask):
    """Some of its questions are broken."""

    bad: tuple[int, ...]

    def samples(self) -> Any:
        good = super().samples()
        bad = self.bad

        class Samples(Sequence[Any]):
            def __len__(self) -> int:
                return len(good)

            def __getitem__(self, index: Any) -> Any:
                if index in bad:
                    from tokenprune.errors import SampleError

                    raise SampleError(f"sample {index} is broken")
                return good[index]

        return Samples()

    def calibration(self, count: int) -> Any:
        return ToyTask().calibration(count)


def test_a_full_disk_is_one_error_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables(completed(tmp_path / "whole"))
    made = config(str(tmp_path / "split"))
    calls = iter(range(100))
    sync = folders.os.fsync

    def sometimes(handle: int) -> None:
        if next(calls) == 3:
            deadly.full()
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(folders.os, "fsync", sometimes)
        with pytest.raises(OutputError, match=r"the disk that holds .* is full; free some space and run the same"):
            run_experiment(made, executor=Threads(), workers=2)
    assert (tmp_path / "split" / "samples.jsonl").read_text()
    tables(run_experiment(made, executor=Threads(), workers=2))
    assert_same(tmp_path / "split", tmp_path / "whole")


class BrokenOn(ToyTask):
    """Cannot score a sample."""

    sample: str

    def score(self, sample: Any, text: str) -> float:
        if sample.id == self.sample:
            raise ValueError("no rule")
        return super().score(sample, text)


def test_a_mistake_in_the_task_stops_at_once(tmp_path: Path) -> None:
    """As one process does: it comes with every sample."""
    task = BrokenOn(sample="s13")
    with pytest.raises(TokenPruneError) as alone:
        run_experiment(config(str(tmp_path / "whole"), task=task))
    with pytest.raises(type(alone.value)) as shared:
        run_experiment(config(str(tmp_path / "split"), task=task), executor=Threads(), workers=2)
    assert str(shared.value) == str(alone.value)


def test_a_job_that_always_fails_is_named_at_the_end_and_the_rest_is_done(tmp_path: Path) -> None:
    class Deaths(Threads):
        def open(self, count: int, setup: Setup) -> Workers:
            return Killing(setup, set())

    class Killing(Inline):
        def carried_out(self, number: int, order: Any) -> list[tuple[int, Message]]:
            found = super().carried_out(number, order)
            for index, (_, message) in enumerate(found):
                content = message.content
                if message.kind == "report" and getattr(content, "number", None) == 2 and "oracle" in content.key:
                    self.stop(number)
                    return [*found[:index], (number, Message("ended", "was killed by SIGKILL"))]
            return found

    made = config(str(tmp_path / "split"))
    with pytest.raises(ForwardError) as caught:
        run_experiment(made, executor=Deaths(), workers=2)
    text = str(caught.value)
    assert text.startswith("2 jobs failed 3 times each: 'oracle / keep_ratio 0.5' on samples 11 to 15 (worker ")
    assert "'oracle / keep_count 2' on samples 11 to 15" in text
    assert text.endswith("all others are done; the same command tries these again")
    rows = (tmp_path / "split" / "samples.jsonl").read_text().splitlines()
    assert len(rows) == 24 * SERIES - 2 * 5
    tables(run_experiment(made, executor=Threads(), workers=1))
    tables(completed(tmp_path / "whole"))
    assert_same(tmp_path / "split", tmp_path / "whole")


def test_a_worker_with_another_model_is_not_used(tmp_path: Path) -> None:
    class Other(Threads):
        def open(self, count: int, setup: Setup) -> Workers:
            return Mixed(setup, set())

    class Mixed(Inline):
        def receive(self, seconds: float) -> Sequence[tuple[int, Message]]:
            found = super().receive(seconds)
            for number, message in found:
                if message.kind == "ready" and number == 0:  # the second to be ready
                    origin = message.content.origin
                    origin = replace(origin, model=origin.model[:-1] + "?")
                    return [(number, Message("ready", Loaded(origin, {})))]
            return found

    tables(completed(tmp_path / "whole"))
    with pytest.warns(UserWarning, match=r"worker 1 cannot be used \(it has another .*\); 1 go on"):
        tables(run_experiment(config(str(tmp_path / "split")), executor=Other(), workers=2))
    assert_same(tmp_path / "split", tmp_path / "whole")


def test_workers_that_die_before_they_do_anything_are_not_started_for_ever(tmp_path: Path) -> None:
    class Dying(Threads):
        def open(self, count: int, setup: Setup) -> Workers:
            return Dead(setup, set())

    class Dead(Inline):
        def receive(self, seconds: float) -> Sequence[tuple[int, Message]]:
            return [(0, Message("ended", "ended with status 1"))]

    with pytest.raises(ForwardError, match="worker 1 ended with status 1; workers die before they have done anything"):
        run_experiment(config(str(tmp_path / "split")), executor=Dying(), workers=2)
    assert not (tmp_path / "split").exists()


def test_what_cannot_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = config(str(tmp_path / "split"))
    with pytest.raises(ConfigError, match="workers are started by an executor, and none is given"):
        run_experiment(made, workers=2)
    with pytest.raises(ConfigError, match="0 workers do nothing; give 1 or more"):
        run_experiment(made, executor=Local(), workers=0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    with pytest.raises(ConfigError, match="3 workers with 1 GPUs each need 3, and 2 are visible; ask for at most 2"):
        run_experiment(made, executor=Local(), workers=3)
    assert Local().default_workers() == 2
    assert Local(gpus=2).default_workers() == 1
    with builtin_only(), pytest.raises(ConfigError, match="unknown executor 'ray'; installed: local"):
        run_experiment(made, executor={"name": "ray", "gpus": 2})
    assert not (tmp_path / "split").exists()


# ---- real processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("count", [1, 2, 4])
def test_processes_write_what_one_process_writes(tmp_path: Path, count: int) -> None:
    task = ToyTask(questions=200)
    write_report(completed(tmp_path / "whole", task=task, batch_size=8, examples=2))
    made = config(str(tmp_path / "split"), task=task, batch_size=8, examples=2)
    write_report(run_experiment(made, executor=Local(), workers=count))
    assert_same(tmp_path / "split", tmp_path / "whole")
    assert (tmp_path / "split" / "summary.json").read_bytes() == (tmp_path / "whole" / "summary.json").read_bytes()


@pytest.mark.slow
@pytest.mark.long
def test_processes_with_a_trained_model(tmp_path: Path) -> None:
    plain = {
        "model": {"name": "digits"},
        "task": {"name": "digits", "split": "test", "questions": 24},
        "methods": ["fastv"],
        "budgets": [{"name": "keep_ratio", "ratio": 0.33}],
        "examples": 1,
    }
    for folder, executor in (("whole", None), ("split", Local())):
        made = config(str(tmp_path / folder), **plain)
        tables(run_experiment(made, executor=executor, workers=2 if executor else None))
    assert_same(tmp_path / "split", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.long
def test_a_process_that_is_killed_is_replaced(tmp_path: Path) -> None:
    task = deadly.DeadlyTask(sample="s17", once=str(tmp_path / "killed"), nth=3)
    tables(completed(tmp_path / "whole"))
    tables(run_experiment(config(str(tmp_path / "split"), task=task), executor=Local(), workers=2))
    assert (tmp_path / "killed").exists()
    for name in ("samples.jsonl", "report.md"):
        assert (tmp_path / "split" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
@pytest.mark.long
def test_a_job_that_always_kills_its_process_is_named(tmp_path: Path) -> None:
    task = deadly.DeadlyTask(sample="s17")
    made = config(str(tmp_path / "split"), task=task, methods=["norm-hidden-large"], oracle=False)
    with pytest.raises(ForwardError) as caught:
        run_experiment(made, executor=Local(), workers=2)
    text = str(caught.value)
    assert text.startswith("1 job failed 3 times each: 'unpruned' on samples 16 to 20 (worker ")
    assert "was killed by SIGKILL" in text
    rows = (tmp_path / "split" / "samples.jsonl").read_text()
    assert '"position": 23' in rows
    assert '"position": 17' not in rows


def experiment(folder: Path, processes: Path) -> str:
    """Code that runs the slow toy experiment with two local workers."""
    return (
        "from tokenprune.experiment import run_experiment\n"
        f"task = deadly.SlowTask(seconds=0.05, processes={str(processes)!r})\n"
        f"run_experiment(toy.config({str(folder)!r}, task=task), executor=Local(), workers=2)\n"
    )


def begun(folder: Path) -> bool:
    path = folder / "samples.jsonl"
    return path.exists() and len(path.read_text().splitlines()) > 10


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("how", ["driver", "both", "Ctrl-C"])
def test_no_worker_outlives_its_driver_and_another_run_goes_on(tmp_path: Path, how: str) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("this system does not show its processes in /proc")
    folder, processes = tmp_path / "split", tmp_path / "processes"
    with driver(experiment(folder, processes), processes) as process:
        wait_for(lambda: begun(folder))
        assert len(alive(processes)) in (1, 2)
        if how == "both":
            for number in alive(processes):
                os.kill(number, signal.SIGKILL)
        process.send_signal(signal.SIGINT if how == "Ctrl-C" else signal.SIGKILL)
        process.wait(timeout=60)
        assert process.returncode == (130 if how == "Ctrl-C" else -signal.SIGKILL)
        wait_for(lambda: not alive(processes), 20)
    rows = (folder / "samples.jsonl").read_text().splitlines()
    assert 0 < len(rows) < 24 * SERIES
    task = deadly.SlowTask(seconds=0.05, processes=str(processes))
    tables(run_experiment(config(str(folder), task=task), executor=Threads(), workers=2))
    tables(completed(tmp_path / "whole"))
    for name in ("samples.jsonl", "report.md"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_a_second_driver_is_refused_in_one_line(tmp_path: Path) -> None:
    folder, processes = tmp_path / "split", tmp_path / "processes"
    with driver(experiment(folder, processes), processes) as process:
        wait_for(lambda: begun(folder))
        made = config(str(folder), task=deadly.SlowTask(seconds=0.05, processes=str(processes)))
        with pytest.raises(OutputError, match=f"is being written by process {process.pid}; wait for it"):
            run_experiment(made, executor=Local(), workers=2)


def test_components_that_workers_cannot_import_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Inside(ToyTask):
        pass

    with pytest.raises(ConfigError, match=r"cannot be sent to them \(.*Inside.*\); define components in a module"):
        run_experiment(config(str(tmp_path / "split"), task=Inside()), executor=Local(), workers=1)
    sent = packed(Setup(deadly.DeadlyTask, tmp_path))
    monkeypatch.delattr(deadly, "DeadlyTask")
    with pytest.raises(ConfigError, match=r"workers cannot import what they need \(.*DeadlyTask.*\); define"):
        unpacked(sent)()
    assert not (tmp_path / "split").exists()


def test_warnings_of_workers_are_the_driver_s(tmp_path: Path) -> None:
    class Warns(Service):
        def hello(self) -> None:
            from tokenprune.errors import TokenPruneWarning

            warnings.warn("the model is odd", TokenPruneWarning, stacklevel=1)

        def handle(self, order: Any, report: Callable[[Any], None]) -> Any:
            raise ValueError("wrong")

    heard: list[Message] = []
    serve(Warns, iter([1, 2]), heard.append)
    assert [message.kind for message in heard] == ["warning", "ready", "ended"]
    assert "a worker failed (ValueError: wrong; " in str(heard[2].content)
