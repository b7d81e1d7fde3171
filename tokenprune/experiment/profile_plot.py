"""A figure of a model's entropy curve and of the layers chosen by it."""

from __future__ import annotations

import statistics
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenprune.drawing.vega import Json, Scale, figure, save, spread
from tokenprune.experiment.profiling import ProfiledModel
from tokenprune.selectors.entropy_profile import EntropyProfile
from tokenprune.selectors.plateau import find_plateau

#: Colours of the mean, of chosen layers (both by Okabe and Ito), of single samples, of the plateau.
MEAN, CHOSEN, SINGLE, PLATEAU = "#0072B2", "#D55E00", "#A6A6A6", "#EEEEEE"
#: Samples with a thin line of their own.
SAMPLES = 6
#: Letters of a line below the curves, and the most such lines that name choices.
LETTERS, LINES = 150, 14
#: Width and height of the curves in pixels.
WIDTH, HEIGHT = 660, 300


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
    scale = Scale(-0.5, measured.profile.num_layers - 0.5)
    title = "matrix entropy of the visual states at the layer's input"
    x = scale.channel("layer", "decoder layer", grid=False, tickMinStep=1, tickCount=16)
    y = {"field": "entropy", "type": "quantitative", "scale": {"zero": False, "padding": 8}, "title": title}
    curves, colours = _curves(measured.profile, x, y)
    chosen = sorted({layer for choice in measured.choices.values() for layer in choice.layers})
    if chosen:
        curves += _chosen(chosen, scale, x)
        colours["chosen: drop before layer"] = CHOSEN
    legend = {
        "scale": {"domain": list(colours), "range": list(colours.values())},
        "legend": {"symbolType": "square", "symbolOpacity": 1},
    }
    for layer in curves:
        layer["encoding"]["color"] = {"field": "line", "type": "nominal", **legend}
    spec = {"width": WIDTH, "height": HEIGHT, "layer": curves}
    return save(figure(spec, _words(measured), []), path)


def _layer(line: str, mark: str, rows: Iterable[Json], encoding: Json, **look: Any) -> Json:
    """A layer of the figure, named in the legend."""
    return {
        "data": {"values": [{"line": line, **row} for row in rows]},
        "mark": {"type": mark, **look},
        "encoding": encoding,
    }


def _curves(profile: EntropyProfile, x: Json, y: Json) -> tuple[list[Json], dict[str, str]]:
    """The plateau, single samples, quartiles and the mean; and the colour of each in the legend."""
    count, found = len(profile.curves), find_plateau(profile)
    name = f"mean of {count} samples" if count > 1 else "one sample"
    layers: list[Json] = []
    colours = {name: MEAN}
    if found.first is not None and found.last is not None:
        ends = {"layer": found.first - 0.5, "end": found.last + 0.5}
        layers.append(_layer("plateau", "rect", [ends], {"x": x, "x2": {"field": "end"}}))
        colours["plateau"] = PLATEAU
    if count > 1:
        single = [
            {"layer": layer, "entropy": value, "sample": number}
            for number, curve in enumerate(profile.curves[:SAMPLES])
            for layer, value in enumerate(curve)
        ]
        layers.append(
            _layer("single samples", "line", single, {"x": x, "y": y, "detail": {"field": "sample"}}, strokeWidth=0.8)
        )
        colours["single samples"] = SINGLE
    if count > 2:
        columns = enumerate(zip(*profile.curves, strict=True))
        parts = [(layer, statistics.quantiles(column, n=4, method="inclusive")) for layer, column in columns]
        quartiles = [{"layer": layer, "entropy": low, "high": high} for layer, (low, _, high) in parts]
        layers.append(_layer("quartiles", "area", quartiles, {"x": x, "y": y, "y2": {"field": "high"}}, opacity=0.5))
        colours["quartiles"] = "#99C7E0"
    mean = [{"layer": layer, "entropy": value} for layer, value in enumerate(profile.mean)]
    layers.append(_layer(name, "line", mean, {"x": x, "y": y}, strokeWidth=2.5, point={"size": 25}))
    return layers, colours


def _chosen(layers: Sequence[int], scale: Scale, x: Json) -> list[Json]:
    """A line before every chosen layer, with its number above the curves."""
    line = "chosen: drop before layer"
    rows = [{"layer": layer - 0.5, "number": layer} for layer in layers]
    rule = _layer(line, "rule", rows, {"x": x}, strokeDash=[5, 3], strokeWidth=1.5)
    places: Json = {
        "transform": [
            *spread(scale.share("datum.layer"), str(18 / WIDTH), "0", "1", "place"),
            {"calculate": scale.value("datum.place"), "as": "beside"},
        ]
    }
    ends = {"x2": {"field": "beside"}, "y": {"value": 0}, "y2": {"value": -10}}
    above = {"x": {**x, "field": "beside"}, "y": {"value": -16}, "text": {"field": "number"}}
    return [
        rule,
        {**_layer(line, "rule", rows, {"x": x, **ends}, strokeWidth=0.8), **places},
        {**_layer(line, "text", rows, above), **places},
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
