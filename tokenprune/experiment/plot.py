"""Accuracy against visual tokens kept: a line per method, or a panel per budget. Needs the extra ``plot``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from tokenprune.experiment.summary import Line, by_budget, is_random

# Okabe and Ito's palette: told apart by readers with any colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C564B", "#332288", "#999933")
MARKERS = "os^Dv<>Ph*"
MANY = len(COLOURS)  # more methods than colours: lines could not be told apart


def accuracy_plot(lines: Sequence[Line], path: Path) -> None:
    """Draw the picture: intervals as bars, the unpruned model as a line with its interval."""
    if len({line.method for line in lines if line.budget}) > MANY:
        _panels(lines, path)
    else:
        _curves(lines, path)


def _panels(lines: Sequence[Line], path: Path) -> None:
    """A panel per budget, a row per method, the best on average on top; random and the unpruned model as lines."""
    table = by_budget(lines)
    means: dict[str, list[float]] = defaultdict(list)
    for line in lines:
        if line.budget:
            means[line.method].append(line.accuracy.mean)
    order = sorted(means, key=lambda method: sum(means[method]) / len(means[method]))
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(2 + 2.2 * len(table), 1.2 + 0.24 * len(order)), layout="constrained")
        panels = figure.subplots(1, len(table), sharey=True, squeeze=False)[0]
        for axes, (budget, cell) in zip(panels, table.items(), strict=True):
            for whole in (line for line in lines if line.method == "unpruned"):
                below, above = whole.accuracy.arms
                axes.axvspan(
                    100 * (whole.accuracy.mean - below), 100 * (whole.accuracy.mean + above), color="0.9", lw=0
                )
            for name in filter(is_random, cell):
                axes.axvline(100 * cell[name].accuracy.mean, color="0.5", lw=0.8, linestyle=":")
            for row, method in enumerate(order):
                if method not in cell:
                    continue
                below, above = cell[method].accuracy.arms
                plain = is_random(method) or method == "oracle"
                axes.errorbar(
                    100 * cell[method].accuracy.mean,
                    row,
                    xerr=[[100 * below], [100 * above]],
                    color="0.4" if plain else COLOURS[0],
                    marker="D" if plain else "o",
                    markersize=4,
                    capsize=2,
                )
            axes.set_title(budget, fontsize=10)
            axes.set_xlabel("accuracy, %")
            axes.set_yticks(range(len(order)), order)
            axes.grid(axis="both", color="0.92")
            axes.set_axisbelow(True)
        figure.savefig(path, dpi=150)


def _curves(lines: Sequence[Line], path: Path) -> None:
    """A line per method over the number of tokens kept."""
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
