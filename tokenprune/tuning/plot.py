"""A picture of the best candidates with intervals. Needs matplotlib (the extra ``report``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokenprune.engine.trials.race import Goal
from tokenprune.palette import GREY, MethodStyle, styles
from tokenprune.plotting import footnote, look, marker_size, save
from tokenprune.tuning.ranking import Ranked, Ranking
from tokenprune.tuning.words import LOSSES, method_of

#: Candidates that the picture shows of each budget, beside the best random one.
SHOWN = 15
#: Losses that differ by more than this factor are drawn on a logarithmic axis.
WIDE = 20.0


def tune_plot(rankings: Sequence[Ranking], goal: Goal, path: Path) -> list[Path]:
    """Draw the losses of the best candidates with their intervals, a panel per budget, the best on top.

    A variant has the colour of its method; random candidates are grey. The cost stands at the right.

    Args:
        rankings: The rankings.
        goal: What the tune makes small.
        path: The PNG file to write; SVG and PDF are written beside it.

    Returns:
        The paths of the files.
    """
    name, factor, unit = LOSSES[goal]
    panels = [shown(ranking) for ranking in rankings]
    found = styles(method_of(row) for rows in panels for row in rows)
    height = 1.3 + 0.24 * sum(map(len, panels)) + 0.7 * len(panels)
    with look():
        figure = Figure(figsize=(9, height), layout="constrained")
        ratios = [len(rows) + 1 for rows in panels]
        axes_per_panel = figure.subplots(len(panels), 1, squeeze=False, height_ratios=ratios)[:, 0]
        for axes, ranking, rows in zip(axes_per_panel, rankings, panels, strict=True):
            _panel(axes, ranking, rows, factor, found)
        subtracted = "100 % minus the " if goal in ("agreement", "score") else ""
        axes_per_panel[-1].set_xlabel(f"{subtracted}{name}, {unit} (less is better)")
        footnote(
            figure,
            "Bars: 95 % intervals; band: that of the best. Hollow: left the race early. Bold: within the noise of the"
            " best.\nCost: visual tokens, mean over the decoder's layers.",
        )
        return save(figure, path)


def _panel(axes: Axes, ranking: Ranking, rows: Sequence[Ranked], factor: float, found: dict[str, MethodStyle]) -> None:
    means = [factor * row.loss.mean for row in rows]
    logarithmic = min(means) > 0 and max(means) > WIDE * min(means)
    if logarithmic:
        axes.set_xscale("log")
    left = min(means) / 10 if logarithmic else 0.0  # an interval may reach zero
    best = rows[0].loss
    axes.axvspan(max(factor * best.low, left), factor * best.high, color="0.93", lw=0)
    for place, row in enumerate(rows):
        style, mean = found[method_of(row)], factor * row.loss.mean
        below, above = mean - max(factor * row.loss.low, left), factor * row.loss.high - mean
        axes.errorbar(
            mean,
            place,
            xerr=[[max(below, 0.0)], [max(above, 0.0)]],
            color=style.colour,
            marker=style.marker,
            markerfacecolor=style.colour if row.left is None else "white",
            markersize=marker_size(style),
            elinewidth=1,
        )
        right = axes.get_yaxis_transform()
        axes.text(
            1.055, place, f"{row.average:.1f}", transform=right, ha="right", va="center", fontsize=8, color="0.35"
        )
    axes.text(1.055, 1.0, "cost", transform=axes.transAxes, ha="right", va="bottom", fontsize=8, color="0.35")
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    for row, label in zip(rows, axes.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if row.tied else "normal")
        label.set_color(GREY if row.random else "0.15")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=left)
    axes.set_title(f"{ranking.budget}, {ranking.samples} samples", fontsize=10)
    axes.grid(axis="both")


def shown(ranking: Ranking) -> list[Ranked]:
    """The first candidates of a ranking, and the best random one below them."""
    first = list(ranking.ranked[:SHOWN])
    chance = ranking.random
    return first if chance is None or chance in first else [*first, chance]
