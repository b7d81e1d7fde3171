"""Runs jobs: each as a process of lmms-eval, one after the other or several side by side, each on a GPU of its own."""

from __future__ import annotations

import fcntl
import os
import queue
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from importlib.metadata import entry_points
from importlib.util import find_spec

from tokenprune.errors import ConfigError, MissingDataError, OutputError, TokenPruneError

from .jobs import Job
from .plan import ROOT
from .results import ASKED, Result, collect, take_up, why, write

#: What a job ends with: its result, or why there is none.
Outcome = Result | str
LOG = "lmms.log"


def check_installed() -> None:
    """Check that lmms-eval and the plugin are installed for this Python.

    Raises:
        MissingDataError: One of them is not.
    """
    fix = "run the driver with the Python of an environment that has lmms-eval 0.7.3 and tokenprune-lmms-eval"
    if find_spec("lmms_eval") is None:
        raise MissingDataError("lmms_eval is not installed for this Python", fix)
    if "tokenprune-lmms-eval" not in {entry.name for entry in entry_points(group="lmms_eval.models")}:
        raise MissingDataError("the plugin tokenprune-lmms-eval is not installed for this Python", fix)


def refusal(job: Job) -> str | None:
    """Why a job cannot start; None if it can."""
    if job.benchmark.judge and not os.environ.get("OPENAI_API_KEY"):
        return f"{job.benchmark.task} asks a judge; set OPENAI_API_KEY, or choose other jobs with --only"
    if job.row.calibrated and job.calibration is None:
        return f"{job.row.method} measures the model; give --calibration DATA, or choose other jobs with --only"
    return None


class Workers:
    """Runs jobs as processes, and ends those that run when it is told to stop.

    Args:
        devices: For each worker the GPU that its jobs see; None leaves the choice to the job.
    """

    def __init__(self, devices: Sequence[str | None]) -> None:
        self._free: queue.Queue[str | None] = queue.Queue()
        for device in devices:
            self._free.put(device)
        self.count = len(devices)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def hand_out(self, jobs: Sequence[Job], report: Callable[[Job, Outcome], None]) -> None:
        """Run all jobs, and report each as soon as it ends. The one place where jobs meet workers."""
        with ThreadPoolExecutor(self.count) as pool:
            futures: list[Future[None]] = []
            try:
                futures += (pool.submit(self._run_and_report, job, report) for job in jobs)
                for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                    future.result()
            except BaseException:
                self.stop()
                for future in futures:
                    future.cancel()
                raise

    def _run_and_report(self, job: Job, report: Callable[[Job, Outcome], None]) -> None:
        report(job, self.run(job))

    def run(self, job: Job) -> Outcome:
        """Run one job, unless it has finished before. A job that fails is an outcome, and no exception."""
        device = self._free.get()
        try:
            return self._run(job, device)
        except TokenPruneError as error:
            return why(error)
        except OSError as error:
            return f"{job.folder} cannot be used ({error.strerror or error})"
        finally:
            self._free.put(device)

    def _run(self, job: Job, device: str | None) -> Outcome:
        refused = refusal(job)
        if refused is not None:
            return refused
        with _claimed(job) as claim:
            found = take_up(job)
            if found is not None:
                return found
            write(job.folder / ASKED, job.settings)
            code = self._process(job, device, claim)
            if self._stopped:
                return "interrupted"
            if code != 0:
                return f"lmms-eval ended with exit code {code}: {_last_line(job)} ({job.folder / LOG})"
            found = collect(job)
            if found is None:
                return f"lmms-eval ended with exit code 0 and wrote no results: {_last_line(job)} ({job.folder / LOG})"
            return found

    def _process(self, job: Job, device: str | None, claim: int) -> int:
        environment = dict(os.environ)
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        with open(job.folder / LOG, "ab") as log:
            log.write(f"$ {shlex.join(job.command)}\n".encode())
            log.flush()
            with self._lock:
                if self._stopped:
                    return -signal.SIGTERM
                # the process holds the claim, too: it keeps others away for as long as it lives, also without us
                process = subprocess.Popen(
                    job.command,
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(claim,),
                )
                self._running.add(process)
            try:
                return process.wait()
            finally:
                with self._lock:
                    self._running.discard(process)

    def stop(self) -> None:
        """End all processes, with those that they started."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                os.killpg(process.pid, signal.SIGTERM)


@contextmanager
def _claimed(job: Job) -> Iterator[int]:
    """The claim on a job's folder, as an open file that a process can inherit.

    Raises:
        OutputError: Another process has it.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    claim = os.open(job.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"another process works in {job.folder}", "wait for it, or end it (its command is in its log)"
            ) from None
        yield claim
    finally:
        os.close(claim)


def devices(workers: int) -> list[str | None]:
    """The GPU of each worker: those of ``CUDA_VISIBLE_DEVICES`` in their order, else the first ones.

    Raises:
        ConfigError: There are fewer than workers, or less than one worker is asked for.
    """
    if workers < 1:
        raise ConfigError(f"--workers {workers}", "give 1 or more")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if workers == 1:
        return [None]  # a job may use all GPUs, e.g. with a device_map
    if visible is None:
        return [str(number) for number in range(workers)]
    named = [name.strip() for name in visible.split(",") if name.strip()]
    if len(named) < workers:
        raise ConfigError(
            f"--workers {workers}, and CUDA_VISIBLE_DEVICES names {len(named)} GPUs",
            "each worker needs a GPU of its own",
        )
    return list(named[:workers])


def _last_line(job: Job) -> str:
    """The last error of a job's log, or its last line."""
    lines = [line.strip() for line in _tail(job).splitlines() if line.strip() and not line.startswith("$ ")]
    errors = [line for line in lines if line.startswith("error:") or "Error" in line.split(":")[0]]
    return (errors or lines or ["no output"])[-1][:300]


def _tail(job: Job) -> str:
    data = (job.folder / LOG).read_bytes()[-20000:]
    return data.decode("utf-8", "replace").rpartition("\n$ ")[2] if b"\n$ " in data else data.decode("utf-8", "replace")
