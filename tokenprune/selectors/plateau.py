"""The low plateau of entropy curves behind their drop: the layers whose states have collapsed."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tokenprune.selectors.entropy_profile import EntropyProfile


@dataclass(frozen=True)
class Plateau:
    """The result of :func:`find_plateau`.

    Attributes:
        first: The collapsed layer: the first layer whose input lies on the plateau; None if there is no plateau.
        last: The last layer of the plateau; None if there is none.
        drop: The layer with the largest mean drop before it.
        level: Mean entropy before the drop, at the input of layer ``drop - 1``.
        floor: The lowest mean entropy that two successive layers from the drop on do not exceed.
        agreement: Share of samples whose own low layers behind the same drop begin at most one layer away.
        sentence: The result in words.
    """

    first: int | None
    last: int | None
    drop: int
    level: float
    floor: float
    agreement: float
    sentence: str


@dataclass(frozen=True)
class _Run:
    """The low layers of one curve."""

    floor: float
    first: int
    last: int


def find_plateau(
    profile: EntropyProfile, share: float = 0.15, min_relative: float = 0.1, min_agreement: float = 0.75
) -> Plateau:
    """Find the layers on which the entropy lies low after its largest mean drop.

    The level is the mean entropy before the drop. The floor is the lowest mean entropy that two successive layers from
    the drop on do not exceed, so that one low layer makes no plateau. The plateau is the first run of at least two
    layers, from the drop on, whose mean entropy is at most ``floor + share * (level - floor)``. There is no plateau if
    less than two layers follow the drop; if the floor is less than ``min_relative`` below the level; if the entropy
    falls on within the run, its median fall per layer being more than half of that before the run; or if fewer than
    ``min_agreement`` of the samples have their own run behind the same drop begin at most one layer away. The sentence
    states the condition that failed.

    A stage before layer K observes layer K-1. Whoever prunes by the plateau therefore prunes before layer
    ``first + 1``: there, a scorer reads queries, keys and values that layer ``first`` computed from collapsed states.
    Before layer ``first`` it would read those of layer ``first - 1``, whose states have not collapsed yet.

    Args:
        profile: The curves.
        share: Height of the plateau above the floor, as a share of the fall from the level to the floor.
        min_relative: Smallest fall that counts, as a share of the level.
        min_agreement: Smallest share of samples that must agree.
    """
    if profile.num_layers < 2:
        return Plateau(
            None, None, 0, profile.mean[0], profile.mean[0], 0.0, "no plateau found: the model has one layer"
        )
    mean = profile.mean
    drop = largest_drop(mean)
    level = mean[drop - 1]
    if mean[drop] >= level:
        return Plateau(None, None, drop, level, mean[drop], 0.0, "no plateau found: the entropy never falls")
    run = _low_run(mean, drop, share)
    if run is None:
        what = f"no two layers follow the largest mean drop, before layer {drop}"
        return Plateau(None, None, drop, level, mean[drop], 0.0, f"no plateau found: {what}")
    own = [_low_run(curve, drop, share) for curve in profile.curves]
    agreement = statistics.fmean(item is not None and abs(item.first - run.first) <= 1 for item in own)
    relative = (level - run.floor) / abs(level) if level else 0.0
    before = (level - mean[run.first]) / (run.first - drop + 1)
    within = statistics.median(a - b for a, b in pairwise(mean[run.first : run.last + 1]))
    facts = (
        f"layers {run.first} to {run.last}, mean entropy {level:.4f} before the drop and at most"
        f" {run.floor + share * (level - run.floor):.4f} there, {100 * agreement:.0f} % of {len(own)} samples agree"
    )
    why = None
    if relative < min_relative:
        why = f"the entropy falls by less than {100 * min_relative:g} %"
    elif within > before / 2:
        why = "the entropy falls on"
    elif agreement < min_agreement:
        why = f"fewer than {100 * min_agreement:g} % of the samples agree"
    if why:
        return Plateau(None, None, drop, level, run.floor, agreement, f"no plateau found: {why} ({facts})")
    sentence = f"low plateau from layer {run.first} on: {facts}"
    return Plateau(run.first, run.last, drop, level, run.floor, agreement, sentence)


def largest_drop(curve: Sequence[float]) -> int:
    """The layer before which a curve of at least two layers falls most; the first of equals."""
    falls = [a - b for a, b in pairwise(curve)]
    return max(range(len(falls)), key=falls.__getitem__) + 1


def _low_run(curve: Sequence[float], drop: int, share: float) -> _Run | None:
    """The first run of at least two low layers from layer ``drop`` on; None if less than two layers are left."""
    pairs = [max(pair) for pair in pairwise(curve[drop:])]
    if not pairs:
        return None
    level, floor = curve[drop - 1], min(pairs)
    bound = floor + share * max(0.0, level - floor)
    low = [value <= bound for value in curve]
    first = next(layer for layer in range(drop, len(curve) - 1) if low[layer] and low[layer + 1])
    last = next((layer - 1 for layer in range(first, len(curve)) if not low[layer]), len(curve) - 1)
    return _Run(floor, first, last)
