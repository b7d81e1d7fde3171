"""Draw the plots of committed results again, from their ``summary.json``: nothing is measured.

python benchmarks/replot.py
"""

from __future__ import annotations

from render_results import RESULTS, summaries

from tokenprune.experiment.plot import accuracy_plot


def main() -> None:
    """Make all again."""
    for path in sorted(RESULTS.glob("*/summary.json")):
        for file in accuracy_plot(summaries(path.parent), path.with_name("accuracy.png")):
        list_layers(path.parent)
        rows = [summary(data) for data in json.loads(path.read_text(encoding="utf-8"))]
        for file in accuracy_plot(charts_of(rows), path.with_name("accuracy.png")):
            if file.suffix != ".png":
                file.unlink()  # the repository holds pictures for screens only
            else:
                print(file.relative_to(RESULTS))


if __name__ == "__main__":
    main()
