"""What workers cost: the overhead of a job, the gain of a second worker, and a driver with 100,000 samples.

python -m benchmarks.executors

The first two tables have a model that costs nothing: answers are made up, and everything else is real. Writes
benchmarks/results/executors/executors.json and executors.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from tokenprune.core.references import UNPRUNED
from tokenprune.executors.base import Executor
from tokenprune.executors.local import Local
from tokenprune.executors.pool import Pool
from tokenprune.executors.service import Service, Setup
from tokenprune.experiment import ExperimentConfig, run_experiment
from tokenprune.experiment.remote import Answers
from tokenprune.experiment.results import Results
from tokenprune.experiment.steps import Answered, Asked
from tokenprune.experiment.worker import AnswerOrder
from tokenprune.output.lines import Row
from tokenprune_cluster.ray import Ray
from tokenprune_cluster.submitit import Submitit

RESULTS = Path(__file__).parent / "results" / "executors"
Result = TypeVar("Result")
BATCH = 8
KEYS = (UNPRUNED, "fastv / keep_ratio 0.25")
EXECUTORS: dict[str, Executor] = {
    "local": Local(gpus=0),
    "ray": Ray(gpus=0, cpus=1),
    "submitit, cluster local": Submitit(cluster="local", gpus=0, cpus=1),
}


class Free(Service):
    """A worker whose answers cost nothing."""

    def hello(self) -> None:
        return None

    def handle(self, order: AnswerOrder, report: Callable[[Any], None]) -> None:
        for asked in order.batches:
            for key in asked.keys:
                first = asked.number * BATCH
                report(Answered(asked.number, key, [row(key, at) for at in range(first, first + BATCH)]))


def row(key: str, position: int) -> Row:
    """A row as an experiment writes it."""
    return {
        "series": key,
        "method": key.partition(" / ")[0],
        "budget": key.partition(" / ")[2] or None,
        "seed": None,
        "position": position,
        "sample": f"line-{position + 1}",
        "type": "all",
        "group": f"{position % 1000}.jpg",
        "answer": "a cat",
        "prediction": "cat",
        "score": 1.0,
        "visual_before": 576,
        "visual_after": 144,
        "layer_average": 170.5,
        "flops": 10**12,
        "flops_unpruned": 3 * 10**12,
        "kv_bytes": 10**8,
        "kv_bytes_unpruned": 3 * 10**8,
    }


@dataclass
class Queue:
    """What a queue of jobs cost.

    Attributes:
        samples: Samples in it.
        jobs: A job is a series with a batch.
        start: Seconds until the first worker was ready.
        seconds: Seconds of all jobs, with the rows written to the disk.
        processor: Seconds of the driver's processor among them.
        memory: MiB that the driver grew by.
        order: Seconds to put the rows in order at the end.
        bytes: Size of the rows.
    """

    samples: int
    jobs: int
    start: float
    seconds: float
    processor: float
    memory: float
    order: float
    bytes: int


def queue(executor: Executor, workers: int, samples: int) -> Queue:
    """Answer samples with a model that costs nothing."""
    batches = samples // BATCH
    with tempfile.TemporaryDirectory() as folder:
        results = Results(folder)
        results.begin_unordered()
        began = time.perf_counter()
        pool = Pool(executor.open(workers, Setup(Free, Path(folder) / ".workers")), workers, lambda hello: None)
        try:
            reports = pool.run(Answers((Asked(number, KEYS) for number in range(batches)), batches, {}, BATCH))
            jobs = keep(results, next(reports))
            start, memory = time.perf_counter(), peak()
            processor = time.process_time()
            for found in reports:
                jobs += keep(results, found)
            seconds, processor = time.perf_counter() - start, time.process_time() - processor
            grown = peak() - memory
        finally:
            pool.close()
        assert jobs == batches * len(KEYS)
        size = results.samples.stat().st_size
        before = time.perf_counter()
        results.put_in_order(KEYS, BATCH)
        return Queue(samples, jobs, start - began, seconds, processor, grown, time.perf_counter() - before, size)


def alone(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in a process of its own: the memory of a process is the most that it ever needed."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def keep(results: Results, found: list[Answered]) -> int:
    """Write what came, and count it."""
    results.append([row for answered in found for row in answered.rows])
    return len(found)


def peak() -> float:
    """MiB of memory that this process has needed so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclass
class Answering:
    """An experiment with a model that computes: seconds in all, and from the first job to the last one."""

    workers: str
    seconds: float
    answering: float
    jobs: int


def experiment(workers: int | None, questions: int) -> Answering:
    """An experiment on handwritten digits, in this process (None) or with local workers."""
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        config = ExperimentConfig.from_dict(
            {
                "model": {"name": "digits"},
                "task": {"name": "digits", "split": "test", "questions": questions},
                "methods": ["fastv"],
                "budgets": [{"name": "keep_ratio", "ratio": 0.33}],
                "output": folder,
                "oracle": False,
                "timing": 0,
                "examples": 0,
            }
        )
        start = time.perf_counter()
        run_experiment(
            config,
            lambda name, done, total: times.append(time.perf_counter()),
            executor=None if workers is None else Local(gpus=0),
            workers=workers,
        )
        seconds = time.perf_counter() - start
    return Answering("one process" if workers is None else f"{workers}", seconds, times[-1] - times[0], len(times))


def lines(queues: dict[str, list[Queue]], answered: list[Answering]) -> Iterator[str]:
    """The results in Markdown."""
    yield "`python -m benchmarks.executors`"
    yield ""
    yield f"A model that costs nothing, 2 workers, 2 series, batches of {BATCH}; rows are written to the disk."
    yield ""
    titles = (
        "executor",
        "samples",
        "jobs",
        "first worker, s",
        "jobs a second",
        "ms a job",
        "driver's processor, ms a job",
    )
    titles += "driver grows, MiB", "order, s", "rows, MiB"
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for name, found in queues.items():
        for item in found:
            yield (
                f"| {name} | {item.samples:,} | {item.jobs:,} | {item.start:.1f} | {item.jobs / item.seconds:,.0f} |"
                f" {1e3 * item.seconds / item.jobs:.2f} | {1e3 * item.processor / item.jobs:.2f} | {item.memory:.1f} |"
                f" {item.order:.1f} | {item.bytes / 2**20:.0f} |"
            )
    yield ""
    yield "Handwritten digits, one thread a worker, executor local. Answering: from the first job to the last one."
    yield ""
    yield "| workers | jobs | seconds | answering, s | speed-up of answering |"
    yield "|---|---|---|---|---|"
    single = next(item.answering for item in answered if item.workers == "1")
    for item in answered:
        yield (
            f"| {item.workers} | {item.jobs} | {item.seconds:.1f} | {item.answering:.1f} |"
            f" {single / item.answering:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--questions", type=int, default=64)
    chosen = parser.parse_args()
    queues = {name: [alone(queue, item, 2, size) for size in chosen.samples] for name, item in EXECUTORS.items()}
    answered = [experiment(workers, chosen.questions) for workers in (None, 1, 2)]
    RESULTS.mkdir(parents=True, exist_ok=True)
    plain = {
        "queues": {name: [vars(item) for item in found] for name, found in queues.items()},
        "experiments": [vars(item) for item in answered],
    }
    (RESULTS / "executors.json").write_text(json.dumps(plain, indent=1) + "\n")
    text = "\n".join(lines(queues, answered)) + "\n"
    (RESULTS / "executors.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    from benchmarks import executors  # workers import Free from there

    executors.main()
