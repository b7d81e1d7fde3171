"""A picture of accuracy against visual tokens kept. Needs matplotlib (the extra ``report``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from tokenprune.experiment.summary import SeriesSummary, by_budget, is_random

# the palette of Okabe and Ito, which readers with colour-vision deficiencies can tell apart, and four more
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C564B", "#332288", "#999933")
MARKERS = "os^Dv<>Ph*"
MOST_CURVES = len(COLOURS)  # with more methods two curves would share a colour


def accuracy_plot(summaries: Sequence[SeriesSummary], path: Path) -> None:
    """Draw the accuracy of all methods with error bars; the unpruned model's interval is a grey band.

    Few methods get one curve each; more than the palette has colours get one panel per budget.

    Args:
        summaries: The rows of the table.
        path: The PNG file to write.
    """
    if len({item.method for item in summaries if item.budget}) > MOST_CURVES:
        _panels(summaries, path)
    else:
        _curves(summaries, path)


def _panels(summaries: Sequence[SeriesSummary], path: Path) -> None:
    """A panel per budget and a row per method, the best on average on top; random methods as vertical lines."""
    table = by_budget(summaries)
    means: dict[str, list[float]] = defaultdict(list)
    for item in summaries:
        if item.budget:
            means[item.method].append(item.accuracy.mean)
    order = sorted(means, key=lambda method: sum(means[method]) / len(means[method]))
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(2 + 2.2 * len(table), 1.2 + 0.24 * len(order)), layout="constrained")
        panels = figure.subplots(1, len(table), sharey=True, squeeze=False)[0]
        for axes, (budget, by_method) in zip(panels, table.items(), strict=True):
            for unpruned in (item for item in summaries if item.method == "unpruned"):
                below, above = unpruned.accuracy.error_bars
                mean = unpruned.accuracy.mean
                axes.axvspan(100 * (mean - below), 100 * (mean + above), color="0.9", lw=0)
            for name in filter(is_random, by_method):
                axes.axvline(100 * by_method[name].accuracy.mean, color="0.5", lw=0.8, linestyle=":")
            for row, method in enumerate(order):
                if method not in by_method:
                    continue
                below, above = by_method[method].accuracy.error_bars
                is_reference = is_random(method) or method == "oracle"
                axes.errorbar(
                    100 * by_method[method].accuracy.mean,
                    row,
                    xerr=[[100 * below], [100 * above]],
                    color="0.4" if is_reference else COLOURS[0],
                    marker="D" if is_reference else "o",
                    markersize=4,
                    capsize=2,
                )
            axes.set_title(budget, fontsize=10)
            axes.set_xlabel("accuracy, %")
            axes.set_yticks(range(len(order)), order)
            axes.grid(axis="both", color="0.92")
            axes.set_axisbelow(True)
        figure.savefig(path, dpi=150)


def _curves(summaries: Sequence[SeriesSummary], path: Path) -> None:
    """A curve per method over the number of tokens kept."""
    methods: dict[str, list[SeriesSummary]] = defaultdict(list)
    for item in summaries:
        methods[item.method].append(item)
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        for unpruned in methods.pop("unpruned", []):
            below, above = unpruned.accuracy.error_bars
            mean = unpruned.accuracy.mean
            axes.axhspan(100 * (mean - below), 100 * (mean + above), color="0.9", lw=0)
            axes.axhline(100 * mean, color="0.3", lw=1, label=f"unpruned ({unpruned.visual:.0f} tokens)")
        for index, (name, points) in enumerate(sorted(methods.items())):
            points = sorted(points, key=lambda point: point.visual)
            is_reference = name in ("oracle", "random")
            axes.errorbar(
                [point.visual for point in points],
                [100 * point.accuracy.mean for point in points],
                yerr=[
                    [100 * length for length in lengths]
                    for lengths in zip(*(point.accuracy.error_bars for point in points), strict=True)
                ],
                color="0.3" if is_reference else COLOURS[index % len(COLOURS)],
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
