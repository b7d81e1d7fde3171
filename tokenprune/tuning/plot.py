"""A picture of the best candidates with intervals. Needs matplotlib (the extra ``report``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from tokenprune.engine.race import Goal
from tokenprune.tuning.ranking import Ranked, Ranking
from tokenprune.tuning.words import LOSSES

#: Candidates that the picture shows of each budget, beside the best random one.
SHOWN = 15
#: Losses that differ by more than this factor are drawn on a logarithmic axis.
WIDE = 20.0
# blue, orange and grey of Okabe and Ito, which readers with colour-vision deficiencies can tell apart; shapes differ
BEST, CHANCE, OTHER = ("#0072B2", "D"), ("#D55E00", "s"), ("0.45", "o")


def tune_plot(rankings: Sequence[Ranking], goal: Goal, path: Path) -> None:
    """Draw the losses of the best candidates with their intervals, a panel per budget, the best on top.

    Args:
        rankings: The rankings.
        goal: What the tune makes small.
        path: The PNG file to write.
    """
    name, factor, unit = LOSSES[goal]
    panels = [shown(ranking) for ranking in rankings]
    height = 1.6 + 0.26 * sum(map(len, panels)) + 0.7 * len(panels)
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, height), layout="constrained")
        axes_per_panel = figure.subplots(
            len(panels), 1, squeeze=False, height_ratios=[len(rows) + 1 for rows in panels]
        )[:, 0]
        for axes, ranking, rows in zip(axes_per_panel, rankings, panels, strict=True):
            means = [factor * row.loss.mean for row in rows]
            logarithmic = min(means) > 0 and max(means) > WIDE * min(means)
            if logarithmic:
                axes.set_xscale("log")
            left = min(means) / 10 if logarithmic else 0.0  # an interval may reach zero
            for place, row in enumerate(rows):
                colour, marker = BEST if place == 0 else CHANCE if row.random else OTHER
                mean = factor * row.loss.mean
                below, above = mean - max(factor * row.loss.low, left), factor * row.loss.high - mean
                axes.errorbar(
                    mean,
                    place,
                    xerr=[[max(below, 0.0)], [max(above, 0.0)]],
                    color=colour,
                    marker=marker,
                    markerfacecolor=colour if row.left is None else "white",
                    markersize=5,
                    capsize=2,
                )
            axes.set_yticks(range(len(rows)), [row.name for row in rows])
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.set_xlim(left=left)
            axes.set_title(f"{ranking.budget}, {ranking.samples} samples", fontsize=10)
            axes.grid(axis="x", color="0.92")
            axes.set_axisbelow(True)
        hollow = "; hollow: left the race early" if any(row.left is not None for rows in panels for row in rows) else ""
        subtracted = "100 % minus the " if goal in ("agreement", "score") else ""
        axes_per_panel[-1].set_xlabel(f"{subtracted}{name}, {unit} (less is better{hollow})")
        figure.savefig(path, dpi=150)


def shown(ranking: Ranking) -> list[Ranked]:
    """The first candidates of a ranking, and the best random one below them."""
    first = list(ranking.ranked[:SHOWN])
    chance = ranking.random
    return first if chance is None or chance in first else [*first, chance]
