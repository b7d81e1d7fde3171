"""Workers as jobs of Slurm, through submitit. Driver and workers speak through files in the output folder."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from tokenprune.authoring import ConfigError, Executor, Message, Setup, Workers, packed, serve, unpacked
from tokenprune_cluster.mailbox import Letters, Pulse, Watch
from tokenprune_cluster.packages import in_one_line, package

#: Seconds between two looks for a letter.
LOOK = 0.1
#: Seconds between two beats of a process.
BEAT = 5.0


class Submitit(Executor):
    """Jobs of Slurm, one for every worker; a job that ends before the run does is submitted again.

    Attributes:
        cluster: ``slurm``, or ``local`` for processes of this machine; None for Slurm where it is installed.
        gpus: GPUs of one worker.
        cpus: Processors of one worker.
        timeout_min: Minutes after which Slurm ends a job.
        partition: The partition; None for the cluster's own.
        parameters: Further parameters of submitit, e.g. ``{slurm_account: mine, slurm_mem: 64GB}``.
        patience: Seconds without a sign of life after which a driver or a worker counts as dead.
    """

    cluster: Literal["slurm", "local"] | None = None
    gpus: int = Field(default=1, ge=0)
    cpus: int = Field(default=8, ge=1)
    timeout_min: int = Field(default=240, ge=1)
    partition: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    patience: float = Field(default=120.0, gt=0)

    def open(self, count: int, setup: Setup) -> Workers:
        """See :meth:`Executor.open`.

        Raises:
            ConfigError: submitit does not take the parameters.
        """
        submitit = package("submitit", "slurm")
        scratch = setup.scratch
        given: dict[str, Any] = {
            "name": "tokenprune",
            "nodes": 1,
            "tasks_per_node": 1,
            "gpus_per_node": self.gpus,
            "cpus_per_task": self.cpus,
            "timeout_min": self.timeout_min,
            **({"slurm_partition": self.partition} if self.partition is not None else {}),
            **self.parameters,
        }
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            executor = submitit.AutoExecutor(folder=scratch / "%j", cluster=self.cluster)
            if executor.cluster == "local" and self.cluster != "local":
                raise ConfigError("there is no Slurm on this machine", "run it where sbatch is, or set cluster: local")
            executor.update_parameters(**given)
        except (TypeError, ValueError, NameError, RuntimeError) as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise ConfigError(f"submitit refuses ({in_one_line(error)})", "see its parameters") from error
        except ConfigError:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        return _Jobs(executor, setup, scratch, self)


class _Job:
    """A worker as a job: what is said to it, what it says, and whether it lives."""

    def __init__(self, job: Any, folder: Path) -> None:
        self.job, self.folder = job, folder
        self.orders, self.messages = Letters(folder / "orders"), Letters(folder / "messages")
        self.watch: Watch | None = None  # from its first message on: before, it may wait for a node


class _Jobs(Workers):
    """Args: submitit's executor, the setup of all workers, the folder of the files, and what the user asked for."""

    def __init__(self, executor: Any, setup: Setup, scratch: Path, asked: Submitit) -> None:
        self._executor, self._setup, self._scratch, self._asked = executor, packed(setup), scratch, asked
        self._jobs: dict[int, _Job] = {}
        self._submitted = 0
        self._pulse = Pulse(scratch / "driver", min(BEAT, asked.patience / 4))
        self._pulse.start()

    def start(self, number: int) -> None:
        """See :meth:`Workers.start`."""
        self.stop(number)
        self._submitted += 1
        folder = self._scratch / f"worker-{self._submitted}"
        path = [entry or os.getcwd() for entry in sys.path]
        folder.mkdir()
        job = self._executor.submit(work, folder, path, self._setup, self._asked)
        self._jobs[number] = _Job(job, folder)

    def send(self, number: int, order: Any) -> None:
        """See :meth:`Workers.send`."""
        self._jobs[number].orders.append(order)

    def receive(self, seconds: float) -> Sequence[tuple[int, Message]]:
        """See :meth:`Workers.receive`."""
        until = time.monotonic() + seconds
        while True:
            found = [heard for number in list(self._jobs) for heard in self._heard(number)]
            if found or time.monotonic() > until:
                return found
            time.sleep(LOOK)

    def _heard(self, number: int) -> list[tuple[int, Message]]:
        job = self._jobs[number]
        ended = job.job.done()
        messages = [(number, message) for message in job.messages.read()]
        if messages and job.watch is None:
            job.watch = Watch(job.folder / "alive")
        silent = job.watch is not None and job.watch.silent() > self._asked.patience
        if messages and messages[-1][1].kind == "ended":
            self.stop(number)
        elif ended or silent:
            state = f"its job {job.job.job_id} is {job.job.state}"
            why = f"ended ({state}; see {job.job.paths.stderr})" if ended else f"gives no sign of life ({state})"
            messages.append((number, Message("ended", why)))
            self.stop(number)
        return messages

    def stop(self, number: int) -> None:
        """See :meth:`Workers.stop`."""
        job = self._jobs.pop(number, None)
        if job is not None:
            shutil.rmtree(job.folder, ignore_errors=True)  # a worker without its folder ends itself
            if self._executor.cluster == "slurm":
                with suppress(Exception):  # it may have ended
                    job.job.cancel(check=False)  # it may still wait for a node

    def close(self) -> None:
        """See :meth:`Workers.close`."""
        for number in list(self._jobs):
            self.stop(number)
        self._pulse.stop()
        for _ in range(50):  # workers that are just ending may still write
            shutil.rmtree(self._scratch, ignore_errors=True)
            if not self._scratch.exists():
                return
            time.sleep(LOOK)


def work(folder: Path, path: Sequence[str], setup: bytes, asked: Submitit) -> None:
    """A worker inside its job. It ends itself when its driver gives no sign of life, or has removed its folder.

    Args:
        folder: The folder of its files.
        path: Where the driver finds modules.
        setup: Its pickled setup.
        asked: What the user asked for.
    """
    patience = asked.patience
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(asked.cpus)
    sys.path += [entry for entry in path if entry not in sys.path]
    began = folder / "began"
    try:
        began.touch(exist_ok=False)
    except (FileExistsError, FileNotFoundError):
        return  # Slurm has requeued the job: the driver submits another one, and does not know of orders that this had
    orders, messages = Letters(folder / "orders"), Letters(folder / "messages")
    driver = Watch(folder.parent / "driver")
    Pulse(folder / "alive", min(BEAT, patience / 4)).start()

    def watch() -> None:
        while folder.is_dir() and driver.silent() < patience:
            time.sleep(min(1.0, patience / 4))
        os._exit(1)

    def arriving() -> Iterator[Any]:
        while True:
            yield from orders.read()
            time.sleep(LOOK)

    def send(message: Message) -> None:
        try:
            messages.append(message)
        except OSError:  # its folder is gone, or the disk is full: the order is given to another worker
            os._exit(1)

    threading.Thread(target=watch, name="tokenprune-watch", daemon=True).start()
    serve(unpacked(setup), arriving(), send)
