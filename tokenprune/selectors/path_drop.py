"""Where the entropy of the visual tokens falls most on their way through vision tower and language model."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tokenprune.selectors.entropy_profile import EntropyProfile


@dataclass(frozen=True)
class PathDrop:
    """The result of :func:`find_path_drop`.

    Attributes:
        start: The point of the path before the drop, e.g. ``tower 4``; empty where the entropy never falls.
        end: The point behind it, e.g. ``layer 0``; empty where the entropy never falls.
        relative: The drop of the mean entropy as a share of that before it; at most 0 where it never falls.
        agreement: Share of samples whose own sharpest relative drop is at most one step away.
        sentence: The result in words.
    """

    start: str
    end: str
    relative: float
    agreement: float
    sentence: str


def find_path_drop(profile: EntropyProfile) -> PathDrop:
    """Find the step with the sharpest relative drop of the mean entropy, from the tower's first layer on.

    Towers and language models have states of different widths, so the drop is relative to the entropy before it. The
    step from the last layer of the tower to ``layer 0`` is the projector's. This is a finding to read:
    :func:`~tokenprune.selectors.entropy_profile.detect_collapse` and
    :func:`~tokenprune.selectors.plateau.find_plateau` decide by the decoder's curves alone.

    Args:
        profile: The curves. Without those of the tower the path begins at ``layer 0``, and the sentence says why.
    """
    names, samples = list(profile.path), list(zip(*profile.path.values(), strict=True))
    missing = ""
    if not profile.tower:
        missing = f"; the vision tower was not measured ({profile.tower_refused or 'the file is older'})"
    mean = profile.path_mean
    falls = _falls(list(mean.values()))
    best = max(range(len(falls)), key=falls.__getitem__, default=None)
    if best is None or falls[best] <= 0:
        relative = 0.0 if best is None else falls[best]
        return PathDrop("", "", relative, 0.0, f"the entropy never falls on the visual path{missing}")
    own = [_falls(curve) for curve in samples]
    agreement = statistics.fmean(abs(max(range(len(row)), key=row.__getitem__) - best) <= 1 for row in own)
    start, end = names[best : best + 2]
    step = f"{start} to {end}"
    if profile.tower_layers == best + 1:
        step += " (the projector)"
    sentence = (
        f"sharpest relative drop on the visual path: {100 * falls[best]:.1f} % ({mean[start]:.4f} to {mean[end]:.4f}),"
        f" from {step}, {100 * agreement:.0f} % of {len(samples)} samples agree{missing}"
    )
    return PathDrop(start, end, falls[best], agreement, sentence)


def _falls(curve: Sequence[float]) -> list[float]:
    """The relative drop at every step of a curve; 0 behind an entropy of 0."""
    return [(a - b) / a if a > 0 else 0.0 for a, b in pairwise(curve)]
