"""Ctrl-C and SIGTERM, as real signals to real processes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.cli.test_tune import write as write_tune
from tests.experiment.test_cli import call, write
from tests.support.checkpoints import FAMILIES
from tokenprune.cli import interrupt

pytestmark = [pytest.mark.usefixtures("toy_installed"), pytest.mark.slow]

AGAIN = " (Ctrl-C again ends at once)"
COMMAND = (sys.executable, "-m", "tokenprune.cli")


@contextmanager
def started(command: Sequence[str], begun: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has written a line that begins so to stderr."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # a job in the background would ignore Ctrl-C
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, **pipes, text=True, preexec_fn=listen)  # type: ignore[call-overload]
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith(begun):
                break
        yield process
    finally:
        process.kill()
        process.communicate()


def rest(process: subprocess.Popen[str]) -> str:
    """What the process still writes to stderr until it ends.

    It is read as the line of :func:`started` was: ``communicate`` would miss what was read ahead together with it.
    """
    assert process.stderr is not None
    error = process.stderr.read()
    process.wait(timeout=60)
    return error


def stopped(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str, float]:
    """The exit status, the line that answers the signal, and the seconds that it took.

    On a busy machine a line of the progress may follow it.
    """
    start = time.monotonic()
    process.send_signal(number)
    lines = rest(process).splitlines()
    line = next((line for line in lines if line.endswith("again ends at once)")), lines[-1])
    return process.returncode, line, time.monotonic() - start


def test_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"name": "toy", "delay": 0.5}
    config = write(tmp_path, batch_size=1, timing=0, examples=0, model=model)
    with started([*COMMAND, "run", config], "after ") as process:
        status, line, seconds = stopped(process, signal.SIGINT)
    folder = tmp_path / "results"
    rows = len((folder / "samples.jsonl").read_text().splitlines())
    assert status == 130
    assert line == f"Ctrl-C: stopping; {rows} rows are kept in {folder}; the same command goes on{AGAIN}"
    assert 0 < rows < 30
    assert seconds < 10
    assert not (folder / ".owner").exists()
    assert call(monkeypatch, "run", config) == 0
    assert call(monkeypatch, "run", config, "--output", str(tmp_path / "whole")) == 0
    for file in ("samples.jsonl", "report.md", "summary.json"):
        assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_tune_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_tune(tmp_path, methods=["fastv", "norm-hidden-large"], samples=24, batch_size=1, first=24)
    with started([*COMMAND, "tune", config], "after ") as process:
        status, line, seconds = stopped(process, signal.SIGTERM)
    folder = tmp_path / "out"
    assert status == 143
    assert re.match(rf"SIGTERM: stopping; \d+ rows are kept in {folder}; the same command goes on ", line)
    assert seconds < 10
    assert not (folder / "tune.jsonl").exists()
    assert call(monkeypatch, "tune", config) == 0
    assert call(monkeypatch, "tune", config, "--output", str(tmp_path / "whole")) == 0
    for file in ("samples.jsonl", "tune.jsonl"):
        assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_bench_ends(tmp_path: Path) -> None:
    checkpoint = FAMILIES["llava"].save(tmp_path)
    options = ["--method", "fastv", "--rounds", "100000", "--device", "cpu", "--dtype", "float32"]
    with started([*COMMAND, "bench", "--model", str(checkpoint), *options], "after ") as process:
        status, line, seconds = stopped(process, signal.SIGINT)
    assert (status, line) == (130, f"Ctrl-C: stopping; nothing is kept{AGAIN}")
    assert seconds < 10


LONG = f"""
import hashlib, sys
sys.path.append({str(Path(interrupt.__file__).parent)!r})
from interrupt import stoppable  # the file alone: the package imports torch
with stoppable(lambda: "all is kept"):
    print("begun", file=sys.stderr, flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # minutes in one step of Python, which no handler interrupts
"""


def test_the_line_does_not_wait_for_a_long_step_and_a_second_signal_ends_it() -> None:
    with started([sys.executable, "-c", LONG], "begun") as process:
        assert process.stderr is not None
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "Ctrl-C: stopping; all is kept (Ctrl-C again ends at once)\n"
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert time.monotonic() - start < 10


def test_a_job_that_ignores_ctrl_c_still_does() -> None:
    """A shell starts jobs in the background so."""
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + LONG.replace(
        'hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)', "signal.raise_signal(signal.SIGINT); print('done')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "begun\n")


SWALLOWS = """try:
        print("begun", file=sys.stderr, flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        pass
    time.sleep(60)"""
CLEANS_UP = """try:
        print("begun", file=sys.stderr, flush=True)
        time.sleep(60)
    finally:
        time.sleep(2)
        print("cleaned up", flush=True)"""


@pytest.mark.parametrize(("body", "said"), [(SWALLOWS, ""), (CLEANS_UP, "cleaned up\n")])
def test_a_signal_that_code_swallows_is_sent_again_but_not_to_what_cleans_up(body: str, said: str) -> None:
    """pydantic swallows what is raised while it writes a nested model."""
    code = "import time\n" + re.sub(r"print\(.*", lambda _: body, LONG, flags=re.DOTALL)
    with started([sys.executable, "-c", code], "begun") as process:
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        error = rest(process)
        assert process.stdout is not None
        assert (process.returncode, process.stdout.read()) == (130, said)
    assert error == "Ctrl-C: stopping; all is kept (Ctrl-C again ends at once)\n"
    assert time.monotonic() - start < 30


def test_the_line_is_printed_though_the_block_is_left_at_once() -> None:
    code = "import signal\n" + LONG.replace(
        'hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)', "signal.raise_signal(signal.SIGINT)"
    )
    with started([sys.executable, "-c", code], "begun") as process:
        error = rest(process)
    assert (process.returncode, error) == (130, "Ctrl-C: stopping; all is kept (Ctrl-C again ends at once)\n")
