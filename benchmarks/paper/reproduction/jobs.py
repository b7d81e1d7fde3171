"""Jobs: one row of a table on one benchmark, as one command of lmms-eval in a folder of its own."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenprune.errors import ConfigError

from .architecture import Architecture
from .plan import Benchmark, Table, read_catalogue
from .rows import Cannot, Row, rows_of


@dataclass(frozen=True)
class Job:
    """One row on one benchmark.

    Attributes:
        row: The row.
        benchmark: The benchmark.
        name: E.g. ``fastv/average-tokens-128/gqa``; also the folder below that of the table.
        table: Its table.
        folder: Where it writes.
        limit: Samples that are answered; None for all.
        calibration: Data for methods that measure the model; None where the row needs none, or none was given.
    """

    row: Row
    benchmark: Benchmark
    name: str
    table: Table
    folder: Path
    limit: int | None = None
    calibration: str | None = None

    @property
    def samples(self) -> int:
        """Number of samples that are answered."""
        return min(self.benchmark.samples, self.limit or self.benchmark.samples)

    @property
    def model_args(self) -> str:
        """The value of ``--model_args``."""
        given = {"pretrained": self.table.checkpoint, **dict(self.row.arguments)}
        if self.calibration is not None:
            given["calibration"] = self.calibration
        given |= {name: _plain(value) for name, value in {**self.table.model_args, **self.benchmark.model_args}.items()}
        return ",".join(f"{name}={value}" for name, value in given.items())

    @property
    def command(self) -> list[str]:
        """The command; it runs in the root of the repository."""
        limit = [] if self.limit is None else ["--limit", str(self.limit)]
        return [
            *(sys.executable, "-m", "lmms_eval", "--model", "tokenprune", "--model_args", self.model_args),
            *("--tasks", self.benchmark.task, "--batch_size", str(self.table.batch_size), *limit),
            *("--output_path", str(self.folder / "lmms"), "--use_cache", str(self.folder / "cache")),
        ]

    @property
    def settings(self) -> dict[str, Any]:
        """What the answers depend on, JSON-ready: a folder that holds those of other settings is refused."""
        return {
            "model_args": self.model_args,
            "task": self.benchmark.task,
            "metric": self.benchmark.metric,
            "batch_size": self.table.batch_size,
            "limit": self.limit,
            "method": self.row.definition,
        }


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Plan:
    """All jobs of a table.

    Attributes:
        table: The table.
        model: Its model without weights.
        rows: Its rows.
        jobs: Its jobs, those that were chosen.
        cannot: Rows that the model or their budget rule out.
    """

    table: Table
    model: Architecture
    rows: tuple[Row, ...]
    jobs: tuple[Job, ...]
    cannot: tuple[Cannot, ...]


def plan_of(
    name: str,
    table: Table,
    model: Architecture,
    output: Path,
    *,
    only: Sequence[str] = (),
    limit: int | None = None,
    calibration: str | None = None,
) -> Plan:
    """The jobs of a table.

    Args:
        name: The table's name.
        table: The table.
        model: Its model.
        output: The folder of all tables.
        only: Patterns of names of jobs, e.g. ``fastv/*``; all jobs without one.
        limit: Samples of each benchmark; limited jobs have folders of their own.
        calibration: Data for the methods that measure the model.

    Raises:
        ConfigError: A pattern fits no job, two jobs have one name, or the limit is not positive.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit {limit}", "give 1 or more, or leave it out")
    found = list(rows_of(table, model))
    rows = tuple(row for row in found if isinstance(row, Row))
    catalogue = read_catalogue()
    folder = output / (name if limit is None else f"{name}-limit-{limit}")
    jobs = [
        Job(
            row,
            catalogue[benchmark],
            f"{row.name}/{benchmark}",
            table,
            folder / row.name / benchmark,
            limit,
            calibration if row.calibrated else None,
        )
        for row in rows
        for benchmark in table.benchmarks
    ]
    names = [job.name for job in jobs]
    repeated = next((job for job in names if names.count(job) > 1), None)
    if repeated is not None:
        raise ConfigError(f"table {name!r} has two jobs {repeated!r}", "give each method and budget once")
    for pattern in only:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(f"--only {pattern!r} fits no job of {name!r}", "see --dry-run; e.g. 'fastv/*' or '*/gqa'")
    chosen = [job for job in jobs if not only or any(fnmatch.fnmatch(job.name, pattern) for pattern in only)]
    cannot = tuple(row for row in found if isinstance(row, Cannot))
    return Plan(table, model, rows, tuple(chosen), cannot)
