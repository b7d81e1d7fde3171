"""Verification of layers: which candidate's pruned answers agree most with the unpruned model? It needs no labels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from tokenprune.core.component import Component
from tokenprune.core.tunable import variants
from tokenprune.errors import ConfigError, LayerError
from tokenprune.selectors.base import ModelProfile, Trial, TrialResult
from tokenprune.selectors.plateau import Plateau
from tokenprune.selectors.verdict import Candidate, Verdict, verdict_key

#: Layer averages that differ by less than this share cost the same.
SAME_COST = 0.02

#: Standard normal quantile of a two-sided interval of 95 %.
QUANTILE = 1.959964


def verify(profile: ModelProfile, fields: Sequence[str], plateau: Plateau, most: int, finding: str) -> Verdict:
    """Compare layers, and alternatives of the pruner's fields, with the unpruned model on the calibration samples.

    Args:
        profile: The model; with a pruner, ``compare`` and ``refusal``.
        fields: Paths of the pruner's fields whose alternatives are verified together with the layer.
        plateau: What the entropy curves show.
        most: The largest number of layers.
        finding: What the entropy curves show, in words.

    Raises:
        LayerError: The budget cannot be met before any layer, or no candidate can run.
        ConfigError: A path names no tunable field of the pruner, or one without alternatives.
    """
    if profile.pruner is None or profile.compare is None or profile.refusal is None:
        raise LayerError("there are no calibration samples to verify layers with", "give calibration samples")
    refusals = {layer: profile.refusal((layer,)) for layer in range(1, profile.num_layers)}
    feasible = [layer for layer, why in refusals.items() if why is None]
    if not feasible:
        why = f": {refusals[1]}" if refusals else ""
        raise LayerError(f"the budget cannot be met before any layer from 1 on{why}", "give another budget")
    layers = candidate_layers(profile.num_layers, feasible, plateau, most)
    trials = [Trial((layer,), pruner) for layer in layers for pruner in alternatives(profile.pruner, fields)]
    results = profile.compare(trials)
    best, second = choose(trials, results)
    candidates = tuple(_candidate(trial, result, fields) for trial, result in zip(trials, results, strict=True))
    return Verdict(
        definition=verdict_key(profile.definition) if profile.definition is not None else {},
        layer=trials[best].layers[0],
        fields=candidates[best].fields,
        reason=f"{_sentence(candidates, results, best, second)}; {finding}",
        candidates=candidates,
    )


def alternatives(pruner: Component, fields: Sequence[str]) -> list[Component]:
    """A pruner with all combinations of the values worth trying of some fields, its own first.

    Args:
        pruner: The pruner.
        fields: Paths of fields, e.g. ``scorer.source``; without any, the pruner is the only one.

    Raises:
        ConfigError: A path names no tunable field, or one without alternatives.
    """
    found = variants(pruner, list(fields))
    values = [field_values(item, fields) for item in found]
    for path in fields:
        if all(item[path] == values[0][path] for item in values):
            raise ConfigError(
                f"there is nothing to verify in {path}: its only value is {values[0][path]!r}",
                "remove it from the selector's fields",
            )
    return found


def field_values(pruner: Component, fields: Sequence[str]) -> dict[str, Any]:
    """The values of some fields as JSON-ready data, by path."""
    values: dict[str, Any] = {}
    dumped = pruner.model_dump(mode="json")
    for path in fields:
        value: Any = dumped
        for step in path.split("."):
            value = value[int(step)] if isinstance(value, list) else value[step]
        values[path] = value
    return values


def _candidate(trial: Trial, result: TrialResult, fields: Sequence[str]) -> Candidate:
    """A trial with the means of its result."""
    about = {"layer": trial.layers[0], "fields": field_values(trial.pruner, fields)}
    if result.refused is not None:
        return Candidate(**about, samples=0, refused=result.refused)
    return Candidate(
        **about,
        samples=len(result.agreement),
        agreement=statistics.fmean(result.agreement),
        divergence=statistics.fmean(result.divergence),
        average=result.average,
    )


def _sentence(candidates: Sequence[Candidate], results: Sequence[TrialResult], best: int, second: int | None) -> str:
    """Which candidate was chosen, how sure that is, and against what."""
    chosen, values = candidates[best], results[best].agreement
    share, samples = statistics.fmean(values), len(values)
    low, high = wilson(share, samples)
    ran = [item for item in candidates if item.refused is None]
    early = sum(item.samples < samples for item in ran)
    left = [f"{early} left early"] if early else []
    left += [f"{len(candidates) - len(ran)} refused"] if len(ran) < len(candidates) else []
    details = f" ({', '.join(left)})" if left else ""
    text = (
        f"verified without labels: {chosen.name} agrees with the unpruned model on {percent(share)} of the answer"
        f" tokens (95 % interval {percent(low)} to {percent(high)}, {samples} samples), the best of"
        f" {len(candidates)} candidates{details}"
    )
    if len(ran) > 1 and len({item.agreement for item in ran}) == 1:
        text += f"; all {len(ran)} agree equally often: taken by cost, then divergence"
    if second is None:
        return f"{text}; no other saw all samples"
    other = results[second].agreement
    low, high = paired_interval(values, other)
    return (
        f"{text}; next {candidates[second].name} with {percent(statistics.fmean(other))} (difference"
        f" {100 * (share - statistics.fmean(other)):+.1f} points, 95 % interval {100 * low:+.1f} to {100 * high:+.1f})"
    )


def candidate_layers(num_layers: int, feasible: Sequence[int], plateau: Plateau, most: int) -> list[int]:
    """The layers worth verifying: the nearest to the collapse, at most ``most`` of them, ascending.

    The window begins one layer before the drop and ends one layer behind the plateau, or without a plateau three layers
    behind the drop. Layers in it come first, then the nearest ones; of two that are equally near the earlier one.

    Args:
        num_layers: Layers of the model.
        feasible: Layers from 1 on before which pruning meets the budget.
        plateau: What the entropy curves show.
        most: The largest number of layers.
    """
    start = max(1, plateau.drop - 1)
    end = min(num_layers - 1, (plateau.drop + 2 if plateau.last is None else plateau.last) + 1)
    nearest = sorted(feasible, key=lambda layer: (max(start - layer, layer - end, 0), layer))
    return sorted(nearest[:most])


def choose(trials: Sequence[Trial], results: Sequence[TrialResult]) -> tuple[int, int | None]:
    """The trial that agrees most with the unpruned model, and the runner-up.

    Only trials that saw all samples are chosen from. Of equal mean agreement the cheapest is taken; of layer averages
    within 2 % of it, the one with the smallest mean divergence.

    Args:
        trials: The trials.
        results: Their results, in the same order.

    Returns:
        The position of the chosen trial and of the runner-up: what would be chosen without the first; None if no other
        trial saw all samples.

    Raises:
        LayerError: Every trial was refused.
    """
    ran = [number for number, result in enumerate(results) if result.refused is None]
    if not ran:
        first = f": {results[0].refused}" if results else ""
        raise LayerError(f"none of the {len(results)} candidates can run{first}", "use another method or budget")
    samples = max(len(results[number].agreement) for number in ran)
    finalists = [number for number in ran if len(results[number].agreement) == samples]
    best = _best(finalists, results)
    others = [number for number in finalists if number != best]
    return best, _best(others, results) if others else None


def _best(numbers: Sequence[int], results: Sequence[TrialResult]) -> int:
    """The first by agreement, then cost, then divergence; then the order given."""
    most = max(statistics.fmean(results[number].agreement) for number in numbers)
    equal = [number for number in numbers if statistics.fmean(results[number].agreement) == most]
    cheapest = min(results[number].average for number in equal)
    equal = [number for number in equal if results[number].average <= cheapest * (1 + SAME_COST)]
    return min(equal, key=lambda number: statistics.fmean(results[number].divergence))


def wilson(share: float, samples: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of so many samples."""
    square = QUANTILE**2
    middle = share + square / (2 * samples)
    width = QUANTILE * math.sqrt(max(0.0, share * (1 - share)) / samples + square / (4 * samples**2))
    return max(0.0, (middle - width) / (1 + square / samples)), min(1.0, (middle + width) / (1 + square / samples))


def paired_interval(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the mean difference of paired shares, after Agresti and Min (2005).

    Half a pair is added to each of the four outcomes, so that the interval has a width where few samples never differ.

    Args:
        one: Shares from 0 to 1, one per sample.
        other: The same of the other one.
    """
    differences = [a - b for a, b in zip(one, other, strict=True)]
    samples = len(differences) + 2
    mean = sum(differences) / samples
    variance = (sum(item**2 for item in differences) + 1) / samples - mean**2
    width = QUANTILE * math.sqrt(max(0.0, variance) / samples)
    return max(-1.0, mean - width), min(1.0, mean + width)


def percent(share: float) -> str:
    """A share as a text in percent."""
    return f"{100 * share:.1f} %"
