"""The command that runs a table, or prints what it would run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenprune.cli.interrupt import AGAIN, stoppable

from .architecture import architecture
from .cost import BANDWIDTH, COMPUTE, DEFAULT_GPU, GPUS, cost_of
from .jobs import Job, Plan, plan_of
from .plan import ROOT, read_table, table_names
from .results import Result
from .work import Outcome, Workers, check_installed, devices


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
        estimate = f"{cost.memory / 1e9:.1f} GB{fits}, {cost.seconds / 60:.1f} min{needs}"
        print(f"job {job.name}: {job.samples} samples, layer average {job.row.average:.1f}, {estimate}")
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
    with stoppable(lambda: f"finished jobs are kept; {AGAIN}"):
        Workers(devices(workers)).hand_out(plan.jobs, report)
    if failed:
        print(f"{len(failed)} of {len(plan.jobs)} jobs failed:", file=sys.stderr)
        print("\n".join(failed), file=sys.stderr)
    return 1 if failed else 0


def main(description: str, arguments: Sequence[str] | None = None) -> int:
    """Do what a command line says; returns the exit code.

    Args:
        description: The text of the help.
        arguments: The command line; by default that of the process.

    Raises:
        TokenPruneError: There is no such table, no such job, or lmms-eval is not installed.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
