"""Draw the plots of committed results again, and list their layers again: nothing is measured.

The plots are made from ``summary.json``, the section "Layers" of ``report.md`` from ``choices.json``.

python benchmarks/replot.py
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tokenprune.experiment.numbers import chosen_layers
from tokenprune.experiment.plot import accuracy_plot, charts_of
from tokenprune.experiment.report import layer_line
from tokenprune.experiment.stats import Estimate
from tokenprune.experiment.summary import SeriesSummary

RESULTS = Path(__file__).parent / "results"
NUMBERS = ("accuracy", "kept", "visual", "average", "flops_reduction", "kv_bytes", "time_ratio")


def estimate(data: dict[str, Any] | None) -> Estimate | None:
    """An estimate of a summary; JSON has null for a number that is not known, or infinite."""
    if data is None:
        return None
    mean, half = data["mean"], data["half"]
    return Estimate(math.nan if mean is None else mean, math.inf if half is None else half)


def summary(data: dict[str, Any]) -> SeriesSummary:
    """One row of a summary."""
    spread = [math.nan if value is None else value for value in data["time_spread"]]
    fields = {name: math.nan if data[name] is None else data[name] for name in NUMBERS if name != "accuracy"}
    estimates = {name: estimate(data.get(name)) for name in ("accuracy", "gain", "divergence")}
    words = {name: data[name] for name in ("method", "budget", "seeds")}
    agreement = estimate(data["agreement"]) if "agreement" in data else Estimate(math.nan, math.inf)
    return SeriesSummary(**words, **fields, **estimates, agreement=agreement, time_spread=(spread[0], spread[1]))


def list_layers(folder: Path) -> None:
    """Write the section "Layers" of a report again."""
    choices = json.loads((folder / "choices.json").read_text(encoding="utf-8"))
    found = chosen_layers(choices, {key: key.split(" / ")[0] for key in choices})
    report = folder / "report.md"
    before, _, after = report.read_text(encoding="utf-8").partition("\nLayers:\n")
    rest = after.partition("\n\n")[2]
    lines = "\n".join(map(layer_line, found))
    report.write_text(before + "\nLayers:\n" + lines + "\n" + (f"\n{rest}" if rest else ""), encoding="utf-8")


def main() -> None:
    """Make all again."""
    for path in sorted(RESULTS.glob("*/summary.json")):
        list_layers(path.parent)
        rows = [summary(data) for data in json.loads(path.read_text(encoding="utf-8"))]
        for file in accuracy_plot(charts_of(rows), path.with_name("accuracy.png")):
            if file.suffix != ".png":
                file.unlink()  # the repository holds pictures for screens only
            else:
                print(file.relative_to(RESULTS))


if __name__ == "__main__":
    main()
