"""Runs one table of the EntropyPrune paper through lmms-eval, with the rivals of today at equal layer averages.

    python benchmarks/paper/run.py llava-1.5-7b --dry-run             # jobs, memory and time, without network
    python benchmarks/paper/run.py llava-1.5-7b --only '*/gqa' --limit 50
    python benchmarks/paper/run.py llava-1.5-7b --executor local --workers 8 --calibration pictures/

A job is one row (a method at a budget) on one benchmark. It has a folder of its own below ``results/paper/``. A finished
job is not run again, and one that was interrupted goes on with the answers that it has. A job that fails is named, and the
others go on; the exit code is then 1. Tables are YAML files in ``benchmarks/paper/tables``.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from reproduction.architecture import architecture
from reproduction.cost import BANDWIDTH, COMPUTE, DEFAULT_GPU, GPUS, cost_of
from reproduction.jobs import Job, Plan, plan_of
from reproduction.plan import ROOT, read_table, table_names
from reproduction.results import Result
from reproduction.work import Outcome, Workers, check_installed, devices

from tokenprune.cli.failures import reported


def dry_run(plan: Plan, gpu_name: str) -> None:
    """Print every job with its estimates, and the sums."""
    gpu = GPUS[gpu_name]
    print(f"GPU {gpu_name}: {gpu.source}; {gpu.flops / 1e12:g} TFLOP/s, {gpu.bandwidth / 1e12:g} TB/s.")
    print(
        f"Assumed: {COMPUTE:.0%} of its FLOP/s, {BANDWIDTH:.0%} of its bandwidth. Pictures and downloads do not count."
    )
    print(f"{plan.table.visual_tokens} visual tokens per sample: {plan.table.visual_note}.")
    for benchmark in dict.fromkeys(job.benchmark.task for job in plan.jobs):
        item = next(job.benchmark for job in plan.jobs if job.benchmark.task == benchmark)
        lengths = f"assumed {item.text_tokens} text tokens, {item.answer_tokens} of an answer"
        print(f"{benchmark}: {item.samples} samples ({item.samples_source}); {lengths}.")
    hours, most = 0.0, 0.0
    for job in plan.jobs:
        cost = cost_of(job.row, job.benchmark, plan.model, gpu, plan.table.batch_size, job.samples)
        hours, most = hours + cost.seconds / 3600, max(most, cost.memory)
        needs = ", asks a judge" if job.benchmark.judge else ""
        needs += ", needs --calibration" if job.row.calibrated else ""
        fits = "" if cost.memory <= gpu.memory else ", MORE THAN THE GPU HAS"
        print(
            f"job {job.name}: {job.samples} samples, layer average {job.row.average:.1f}, {cost.memory / 1e9:.1f} GB{fits},"
            f" {cost.seconds / 60:.1f} min{needs}"
        )
    for row in plan.cannot:
        print(f"no job {row.name}: {row.why}")
    print(f"{len(plan.jobs)} jobs, {hours:.1f} GPU hours, at most {most / 1e9:.1f} GB")


def run(plan: Plan, workers: int) -> int:
    """Run all jobs; returns the exit code."""
    check_installed()
    failed: list[str] = []
    number = 0

    def report(job: Job, outcome: Outcome) -> None:
        nonlocal number
        number += 1
        place = f"[{number}/{len(plan.jobs)}] {job.name}"
        if isinstance(outcome, Result):
            expected = job.samples
            other = "" if outcome.samples == expected else f", and the table says {expected}"
            print(f"{place}: {outcome.score:.2f} ({outcome.samples} samples{other})", flush=True)
        else:
            failed.append(f"{job.name}: {outcome}")
            print(f"{place}: FAILED: {outcome}", flush=True)

    for row in plan.cannot:
        print(f"no job {row.name}: {row.why}")
    Workers(devices(workers)).hand_out(plan.jobs, report)
    if failed:
        print(f"{len(failed)} of {len(plan.jobs)} jobs failed:", file=sys.stderr)
        print("\n".join(failed), file=sys.stderr)
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", help=f"one of {', '.join(table_names())}")
    parser.add_argument("--dry-run", action="store_true", help="print the jobs with memory and time, and run none")
    parser.add_argument("--gpu", choices=sorted(GPUS), default=DEFAULT_GPU, help="the GPU of the estimates")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="jobs by name, e.g. 'fastv/*'")
    parser.add_argument("--limit", type=int, help="samples of each benchmark, to try; they get folders of their own")
    parser.add_argument("--calibration", help="pictures or questions for methods that measure the model")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "paper", help="the folder of all tables")
    parser.add_argument("--executor", choices=["local"], default="local", help="how jobs are run")
    parser.add_argument("--workers", type=int, default=1, help="jobs side by side, each with a GPU of its own")
    given = parser.parse_args(arguments)
    table = read_table(given.table)
    plan = plan_of(
        given.table,
        table,
        architecture(table.architecture),
        given.output.resolve(),
        only=given.only,
        limit=given.limit,
        calibration=given.calibration,
    )
    if given.dry_run:
        dry_run(plan, given.gpu)
        return 0
    return run(plan, given.workers)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        with reported():
            sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
