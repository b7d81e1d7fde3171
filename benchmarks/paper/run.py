"""Runs one table of the EntropyPrune paper through lmms-eval, with the rivals of today at equal layer averages.

    python benchmarks/paper/run.py llava-1.5-7b --dry-run             # jobs, memory and time, without network
    python benchmarks/paper/run.py llava-1.5-7b --only '*/gqa' --limit 50
    python benchmarks/paper/run.py llava-1.5-7b --executor local --workers 8 --calibration pictures/

A job is one row (a method at a budget) on one benchmark. It has a folder of its own below ``results/paper/``. A
finished job is not run again, and one that was interrupted goes on with the answers that it has. A job that fails is
named, and the others go on; the exit code is then 1. Tables are YAML files in ``benchmarks/paper/tables``.
"""

from __future__ import annotations

import sys

from reproduction.command import main

from tokenprune.cli.failures import reported

if __name__ == "__main__":
    with reported():
        sys.exit(main(__doc__ or ""))
