"""Draw the plots of committed results again, from their ``summary.json``: nothing is measured.

python benchmarks/replot.py
"""

from __future__ import annotations

from render_results import RESULTS, summaries

from tokenprune.experiment.plot import accuracy_plot, charts_of


def main() -> None:
    """Make all again that are there."""
    for path in sorted(RESULTS.glob("*/accuracy.png")):
        for file in accuracy_plot(charts_of(summaries(path.parent)), path):
            if file.suffix != ".png":
                file.unlink()  # the repository holds pictures for screens only
            else:
                print(file.relative_to(RESULTS))


if __name__ == "__main__":
    main()
