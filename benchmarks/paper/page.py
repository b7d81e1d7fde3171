"""Writes the generated part of docs/paper.md again; with ``--results`` compares results with published figures.

    python benchmarks/paper/page.py
    python benchmarks/paper/page.py --results results/paper --calibration PICTURES --output results/paper/page.md

``--calibration`` is what the results were made with.
"""

from __future__ import annotations

from reproduction.write import main

from tokenprune.cli.failures import reported

if __name__ == "__main__":
    with reported():
        main(__doc__ or "")
