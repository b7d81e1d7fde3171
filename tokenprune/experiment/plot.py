"""Accuracy against visual tokens kept, one line per method. Needs the extra ``plot``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from tokenprune.experiment.report import Line

# Okabe and Ito's palette: told apart by readers with any colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C564B", "#332288", "#999933")
MARKERS = "os^Dv<>Ph*"


def accuracy_plot(lines: Sequence[Line], path: Path) -> None:
    """Draw the picture: intervals as bars, the unpruned model as a horizontal line with its interval."""
    methods: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        methods[line.method].append(line)
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        for whole in methods.pop("unpruned", []):
            below, above = whole.accuracy.arms
            mean = whole.accuracy.mean
            axes.axhspan(100 * (mean - below), 100 * (mean + above), color="0.9", lw=0)
            axes.axhline(100 * whole.accuracy.mean, color="0.3", lw=1, label=f"unpruned ({whole.visual:.0f} tokens)")
        for index, (name, points) in enumerate(sorted(methods.items())):
            points = sorted(points, key=lambda line: line.visual)
            fixed = name in ("oracle", "random")
            axes.errorbar(
                [line.visual for line in points],
                [100 * line.accuracy.mean for line in points],
                yerr=[
                    [100 * arm for arm in arms] for arms in zip(*(line.accuracy.arms for line in points), strict=True)
                ],
                color="0.3" if fixed else COLOURS[index % len(COLOURS)],
                linestyle={"oracle": "--", "random": ":"}.get(name, "-"),
                marker=MARKERS[index % len(MARKERS)],
                capsize=3,
                markersize=5,
                label=name,
            )
        axes.set_xlabel("visual tokens kept (of each image, after pruning)")
        axes.set_ylabel("accuracy, %")
        axes.set_xlim(left=0)
        axes.grid(axis="y", color="0.92")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        figure.savefig(path, dpi=150)
