"""A picture of a model's entropy curve and of the layers chosen by it. Needs matplotlib (the extra ``report``)."""

from __future__ import annotations

import statistics
import textwrap
from collections import defaultdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tokenprune.experiment.profiling import ProfiledModel
from tokenprune.plotting import footnote, look, save, spread
from tokenprune.selectors.entropy_profile import EntropyProfile
from tokenprune.selectors.plateau import find_plateau

#: Colours of the mean and of chosen layers, by Okabe and Ito.
MEAN, CHOSEN = "#0072B2", "#D55E00"
#: Samples with a thin line of their own.
SAMPLES = 6
#: Letters of a line below the picture, and the most such lines that name choices.
LETTERS, LINES = 150, 14


def profile_plot(measured: ProfiledModel, path: Path) -> list[Path]:
    """Draw the entropy at the input of every layer, the chosen layers, and the verdict in words.

    The mean is thick; the band reaches from the first to the third quartile of the samples; a few samples have thin
    lines.

    Args:
        measured: The curves, and what was chosen by them.
        path: The PNG file to write; SVG and PDF are written beside it.

    Returns:
        The paths of the files.
    """
    words = _words(measured)
    with look():
        figure = Figure(figsize=(9, 4 + 0.17 * len(words)), layout="constrained")
        axes = figure.subplots()
        _curves(axes, measured.profile)
        axes.set_xlabel("decoder layer")
        axes.set_ylabel("matrix entropy of the visual states\nat the layer's input")
        axes.xaxis.set_major_locator(MaxNLocator(16, integer=True, min_n_ticks=1))
        axes.set_xlim(-0.5, measured.profile.num_layers - 0.5)
        axes.grid(axis="y")
        footnote(figure, "\n".join(words))
        _chosen(figure, axes, measured)
        figure.legend(loc="outside right upper")
        return save(figure, path)


def _curves(axes: Axes, profile: EntropyProfile) -> None:
    layers = list(range(profile.num_layers))
    found = find_plateau(profile)
    if found.first is not None and found.last is not None:
        axes.axvspan(found.first - 0.5, found.last + 0.5, color="0.94", lw=0, label="plateau")
    count = len(profile.curves)
    for number, curve in enumerate(profile.curves[:SAMPLES] if count > 1 else ()):
        label = "single samples" if number == 0 else None
        axes.plot(layers, curve, color="0.6", lw=0.6, alpha=0.8, label=label)
    if count > 2:
        quartiles = [
            statistics.quantiles(column, n=4, method="inclusive") for column in zip(*profile.curves, strict=True)
        ]
        low, high = [parts[0] for parts in quartiles], [parts[2] for parts in quartiles]
        axes.fill_between(layers, low, high, color=MEAN, alpha=0.2, lw=0, label="quartiles")
    name = f"mean of {count} samples" if count > 1 else "one sample"
    axes.plot(layers, profile.mean, color=MEAN, lw=2, marker="o", markersize=3.5, label=name)


def _chosen(figure: Figure, axes: Axes, measured: ProfiledModel) -> None:
    """A line before every chosen layer, with its number above the axes."""
    layers = sorted({layer for choice in measured.choices.values() for layer in choice.layers})
    if not layers:
        return
    figure.draw_without_rendering()
    box = axes.get_window_extent()
    width = 2.1 * figure.dpi * 8.5 / 72
    wanted = [float(axes.transData.transform((layer - 0.5, 0))[0]) for layer in layers]
    places = spread(wanted, [width] * len(layers), box.x0, box.x1) or wanted
    for number, (layer, place) in enumerate(zip(layers, places, strict=True)):
        label = "chosen: drop before layer" if number == 0 else None
        axes.axvline(layer - 0.5, color=CHOSEN, lw=1.3, linestyle="--", label=label)
        axes.annotate(
            str(layer),
            (layer - 0.5, 1.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=((place - box.x0) / box.width, 1.05),
            textcoords="axes fraction",
            ha="center",
            va="bottom",
            fontsize=8.5,
            color=CHOSEN,
            arrowprops={"arrowstyle": "-", "color": CHOSEN, "lw": 0.6, "shrinkA": 0, "shrinkB": 0},
        )


def _words(measured: ProfiledModel) -> list[str]:
    """The verdict in lines. Series with the same reason share a sentence."""
    keys: dict[str, list[str]] = defaultdict(list)
    for key, choice in measured.choices.items():
        keys[choice.reason].append(key)
    reasons = [f"{', '.join(names)}: {reason}" for reason, names in keys.items()]
    lines = [line for text in measured.sentences for line in textwrap.wrap(text[:1].upper() + text[1:], LETTERS)]
    for number, text in enumerate(reasons):
        wrapped = textwrap.wrap(text, LETTERS, break_on_hyphens=False, subsequent_indent="    ")
        if len(lines) + len(wrapped) > LINES:
            return [*lines, f"... and {len(reasons) - number} more, which the profile's file holds."]
        lines += wrapped
    return lines
