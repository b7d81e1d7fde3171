"""A driver of 1,000 workers and 10,000,000 samples, simulated: what it holds, reads and writes, and where it breaks.

python -m benchmarks.executors_simulation

The workers are simulated, in simulated time. What gives them orders and takes up reports is the code of a real driver,
and its memory is measured. The driver's time for a job is what benchmarks/executors.py measured. Writes
benchmarks/results/executors/simulation.md.
"""

from __future__ import annotations

import argparse
import heapq
import json
import pickle
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from benchmarks.executors import BATCH, KEYS, RESULTS, alone, row
from tokenprune.experiment.losses import Event, Losses, LossesInOrder
from tokenprune.experiment.remote import Answers
from tokenprune.experiment.steps import Answered, Asked
from tokenprune.output.lines import line


@dataclass
class Simulated:
    """One simulated run.

    Attributes:
        workers: How many.
        job: Seconds of a job on a worker.
        samples: Samples.
        minutes: Simulated time of the run.
        busy: Share of that time in which the driver works.
        waiting: The longest time that a report waited for the driver, in seconds.
        orders: Orders that were given.
        open: Jobs that were reported before an earlier one, at most.
        memory: MiB that the driver's own state took, at most.
        real: Seconds that the simulation took.
    """

    workers: int
    job: float
    samples: int
    minutes: float
    busy: float
    waiting: float
    orders: int
    open: int
    memory: float
    real: float


def simulate(workers: int, job: float, samples: int, driver: float) -> Simulated:
    """Simulate a run.

    Args:
        workers: How many.
        job: Mean seconds of a job on a worker; they scatter by 20 %, and one worker in a hundred takes three times as
            long.
        samples: Samples.
        driver: Seconds that the driver works for a job.
    """
    began, before = time.perf_counter(), peak()
    dice = Random(0)
    slow = [3.0 if number % 100 == 99 else 1.0 for number in range(workers)]
    batches = samples // BATCH
    order = LossesInOrder(Losses())
    work = Answers(asked(batches, order), batches, {}, BATCH)
    events: list[tuple[float, int]] = []  # when a worker has its next job done
    having: dict[int, tuple[object, list[Answered]]] = {}
    free = busy = waiting = 0.0
    orders = most_open = 0

    def give(worker: int, now: float) -> None:
        nonlocal orders
        taken = work.take(workers)
        if taken is not None:
            orders += 1
            jobs = [
                Answered(item.number, key, (), (), (Event(False, BATCH),))
                for item in reversed(taken.batches)
                for key in reversed(item.keys)
            ]
            having[worker] = taken, jobs
            heapq.heappush(events, (now + duration(worker), worker))

    def duration(worker: int) -> float:
        return job * slow[worker] * dice.uniform(0.8, 1.2)

    for worker in range(workers):
        give(worker, 0.0)
    now = 0.0
    while events:
        now, worker = heapq.heappop(events)
        taken, jobs = having[worker]
        answered = jobs.pop()
        free = max(free, now) + driver
        busy += driver
        waiting = max(waiting, free - now)
        work.report(taken, answered)  # type: ignore[arg-type]
        order.came(answered.number, answered.key, answered.events)
        most_open = max(most_open, order.waiting)
        if jobs:
            heapq.heappush(events, (now + duration(worker), worker))
        else:
            work.done(taken, None)  # type: ignore[arg-type]
            del having[worker]
            give(worker, free)
    assert work.finished
    end = max(now, free)
    real = time.perf_counter() - began
    return Simulated(workers, job, samples, end / 60, busy / end, waiting, orders, most_open, peak() - before, real)


def asked(batches: int, order: LossesInOrder) -> Iterator[Asked]:
    """The batches, one by one, as a driver makes them."""
    for number in range(batches):
        order.expect(number, KEYS)
        yield Asked(number, KEYS)


def peak() -> float:
    """MiB of memory that this process has needed so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def lines(runs: list[Simulated], driver: float) -> Iterator[str]:
    """The results in Markdown."""
    rows = [row(KEYS[1], at) for at in range(BATCH)]
    written = sum(len(line(item)) for item in rows) / BATCH
    heard = len(pickle.dumps(Answered(0, KEYS[1], rows)))
    yield "`python -m benchmarks.executors_simulation`"
    yield ""
    yield (
        f"Batches of {BATCH}, {len(KEYS)} series; the driver works {1e3 * driver:.2f} ms for a job (executors.md,"
        " `local`, its largest queue)."
    )
    yield ""
    titles = "workers", "samples", "s a job", "minutes", "driver busy", "longest wait of a report, s", "orders"
    yield f"| {' | '.join((*titles, 'jobs ahead of an earlier one', 'driver grows, MiB'))} |"
    yield "|---" * 9 + "|"
    for item in runs:
        yield (
            f"| {item.workers:,} | {item.samples:,} | {item.job:g} | {item.minutes:.1f} | {100 * item.busy:.0f} % |"
            f" {item.waiting:.2f} | {item.orders:,} | {item.open:,} | {item.memory:.0f} |"
        )
    samples = runs[-1].samples
    yield ""
    size = samples * len(KEYS) * written / 2**30
    yield f"- A row is {written:.0f} bytes: {size:.1f} GiB are written for {samples:,} samples."
    yield f"- A report of a job is {heard:,} bytes: {samples // BATCH * len(KEYS) * heard / 2**30:.1f} GiB are heard."
    yield (
        f"- At the end the rows are read three times and written once, and 24 bytes a row put them in order:"
        f" {samples * len(KEYS) * 24 / 2**20:,.0f} MiB."
    )
    held = 80  # benchmarks/results/streaming.md: about 400 bytes a line for 5 series
    size = samples * len(KEYS) * held / 2**20
    yield f"- Tables are made of about {held} bytes a row (streaming.md): {size:,.0f} MiB."
    yield (
        f"- The driver is busy all the time with {1 / driver:,.0f} jobs a second: that is where it breaks first. With"
        f" {runs[-1].job:g} s a job these are {runs[-1].job / driver:,.0f} workers. Larger batches move the limit."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10_000_000)
    chosen = parser.parse_args()
    measured = json.loads((RESULTS / "executors.json").read_text())["queues"]["local"]
    largest = max(measured, key=lambda item: item["samples"])
    driver = largest["processor"] / largest["jobs"]
    small = chosen.samples // 10
    settings = [(10, 0.5, small), (100, 0.5, small), (1000, 0.5, small), (1000, 0.1, small), (1000, 5.0, small)]
    runs = [alone(simulate, *setting, driver) for setting in (*settings, (1000, 0.5, chosen.samples))]
    text = "\n".join(lines(runs, driver)) + "\n"
    (RESULTS / "simulation.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
