"""A figure of the entropy along a model's visual path and of the layers chosen by it."""

import statistics
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenprune.drawing.palette import COLOURS
from tokenprune.drawing.vega import SOFT, Json, Scale, figure, layer, save, spread
from tokenprune.experiment.profiling import ProfiledModel
from tokenprune.selectors.plateau import find_plateau

#: Samples with a thin line of their own.
SAMPLES = 6
#: Letters of a line below the curves, and the most such lines that name choices.
LETTERS, LINES = 150, 14
#: Width and height of the curves in pixels.
WIDTH, HEIGHT = 660, 300


def profile_plot(measured: ProfiledModel, path: Path) -> list[Path]:
    """Draw the entropy along the visual path, the chosen layers, and the verdict in words.

    The path leads behind the layers of the vision tower (T0, T1 ...) and, right of a line, to the inputs of the decoder
    layers. The mean is thick; the band reaches from the first to the third quartile of the samples; a few samples have
    thin lines.

    Args:
        measured: The curves, and what was chosen by them.
        path: The PNG file to write; SVG and PDF are written beside it.

    Returns:
        The paths of the files.
    """
    profile, tower = measured.profile, measured.profile.tower_layers
    columns = list(profile.path.values())
    layers = range(-tower, profile.num_layers)  # the tower's are below zero
    scale = Scale(-tower - 0.5, profile.num_layers - 0.5)
    title = "input of decoder layer"
    named: Json = {"grid": False, "tickMinStep": 1, "tickCount": 16}
    if tower:
        title = f"behind layer T0 to T{tower - 1} of the vision tower, then input of decoder layer"
        named["labelExpr"] = f"datum.value < 0 ? 'T' + (datum.value + {tower}) : format(datum.value, 'd')"
    x = scale.channel("layer", title, **named)
    title = "matrix entropy of the visual states"
    y = {"field": "entropy", "type": "quantitative", "scale": {"zero": False, "padding": 8}, "title": title}
    lines: dict[str, tuple[str, list[Json]]] = {}  # name in the legend -> colour, layers
    if (plateau := find_plateau(profile)).first is not None and plateau.last is not None:
        ends = [{"layer": plateau.first - 0.5, "end": plateau.last + 0.5}]
        lines["plateau"] = "#EEEEEE", [layer("rect", {"x": x, "x2": {"field": "end"}}, ends)]
    count = len(profile.curves)
    if count > 1:
        single = [
            {"layer": at, "entropy": value, "sample": number}
            for number, curve in enumerate(list(zip(*columns, strict=True))[:SAMPLES])
            for at, value in zip(layers, curve, strict=True)
        ]
        sample = {"x": x, "y": y, "detail": {"field": "sample"}}
        lines["single samples"] = "#A6A6A6", [layer("line", sample, single, strokeWidth=0.8)]
    if count > 2:
        parts = [statistics.quantiles(column, n=4, method="inclusive") for column in columns]
        rows = [{"layer": at, "entropy": low, "high": high} for at, (low, _, high) in zip(layers, parts, strict=True)]
        between = {"x": x, "y": y, "y2": {"field": "high"}}
        lines["quartiles"] = "#99C7E0", [layer("area", between, rows, opacity=0.5)]
    mean = [{"layer": at, "entropy": value} for at, value in zip(layers, profile.path_mean.values(), strict=True)]
    name = f"mean of {count} samples" if count > 1 else "one sample"
    lines[name] = COLOURS[0], [layer("line", {"x": x, "y": y}, mean, strokeWidth=2.5, point={"size": 25})]
    if chosen := sorted({at for choice in measured.choices.values() for at in choice.layers}):
        lines["chosen: drop before layer"] = COLOURS[1], _chosen(chosen, scale, x)
    drawn = [*(_boundary(x) if tower else []), *_named(lines)]
    return save(figure({"width": WIDTH, "height": HEIGHT, "layer": drawn}, _words(measured)), path)


def _boundary(x: Json) -> list[Json]:
    """A line between vision tower and language model, with the names of both beside it."""
    at = [{"layer": -0.5}]
    inside = {"x": x, "y": {"value": HEIGHT - 8}}
    left: Json = {"align": "right", "dx": -6}
    right: Json = {"align": "left", "dx": 6}
    return [
        layer("rule", {"x": x}, at, color=SOFT, strokeWidth=1.5),
        layer("text", inside | {"text": {"value": "vision tower"}}, at, color=SOFT, **left),
        layer("text", inside | {"text": {"value": "language model"}}, at, color=SOFT, **right),
    ]


def _named(lines: Mapping[str, tuple[str, list[Json]]]) -> list[Json]:
    """The layers in their colours, with a legend."""
    legend = {"symbolType": "square", "symbolOpacity": 1}
    colours: Json = {"domain": list(lines), "range": [colour for colour, _ in lines.values()]}
    return [
        {**part, "encoding": {**part["encoding"], "color": {"datum": name, "scale": colours, "legend": legend}}}
        for name, (_, parts) in lines.items()
        for part in parts
    ]


def _chosen(layers: Sequence[int], scale: Scale, x: Json) -> list[Json]:
    """A line before every chosen layer, with its number above the curves."""
    rows = [{"layer": at - 0.5, "number": at} for at in layers]
    places = spread(scale.share("datum.layer"), str(18 / WIDTH), "0", "1", "place")
    moved = [*places, {"calculate": scale.value("datum.place"), "as": "beside"}]
    ends = {"x": x, "x2": {"field": "beside"}, "y": {"value": 0}, "y2": {"value": -10}}
    above = {"x": {**x, "field": "beside"}, "y": {"value": -16}, "text": {"field": "number"}}
    return [
        layer("rule", {"x": x}, rows, strokeDash=[5, 3], strokeWidth=1.5),
        layer("rule", ends, rows, moved, strokeWidth=0.8),
        layer("text", above, rows, moved),
    ]


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
