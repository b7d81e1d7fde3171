"""Verifies ways to prune: finds the one whose answers agree most with the unpruned model's. It needs no labels."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from tokenprune.core.component import Component
from tokenprune.core.tunable import get_field, variants
from tokenprune.errors import ConfigError, LayerError
from tokenprune.selectors.base import SelectorContext, Trial, TrialResult
from tokenprune.selectors.plateau import Plateau
from tokenprune.selectors.verdict import Promise, VerdictRow
from tokenprune.stats.bootstrap import corrected
from tokenprune.stats.clustered import difference
from tokenprune.stats.clustered import share as share_of

#: Of candidates that agree equally often, those whose layer averages differ by less than this share are not chosen by
#: cost.
TIED_COST = 0.02


def feasible_layers(ctx: SelectorContext) -> list[int]:
    """The layers from 1 on before which pruning meets the budget on the calibration samples.

    Raises:
        LayerError: There is none.
    """
    assert ctx.refusal is not None
    refusals = {layer: ctx.refusal((layer,)) for layer in range(1, ctx.num_layers)}
    feasible = [layer for layer, why in refusals.items() if why is None]
    if not feasible:
        why = f": {refusals[1]}" if refusals else ""
        raise LayerError(f"the budget cannot be met before any layer from 1 on{why}", "give another budget")
    return feasible


def own_trials(layers: Sequence[int], pruner: Component, fields: Sequence[str]) -> list[Trial]:
    """Every layer with every alternative of the method's own pruner.

    Raises:
        ConfigError: A path names no tunable field of the pruner, or one without alternatives.
    """
    pruners = alternatives(pruner, fields)
    return [Trial((layer,), item, setting_words(item, fields)) for layer in layers for item in pruners]


def alternatives(pruner: Component, fields: Sequence[str]) -> list[Component]:
    """A pruner with all combinations of the values worth trying of some fields, its own first.

    Args:
        pruner: The pruner.
        fields: Paths of fields, e.g. ``scorer.source``; without any, the pruner is the only one.

    Raises:
        ConfigError: A path names no tunable field, or one without alternatives.
    """
    found = variants(pruner, list(fields))
    for path in fields:
        own = get_field(found[0], path)
        if all(get_field(item, path) == own for item in found):
            raise ConfigError(
                f"there is nothing to verify in {path}: its only value is {own!r}",
                "remove it from the selector's fields",
            )
    return found


def setting_words(pruner: Component, fields: Sequence[str]) -> str:
    """The values of some fields of a pruner in words, e.g. ``source hidden, tower layer 0``."""
    values = ((path.rpartition(".")[2].replace("_", " "), get_field(pruner, path)) for path in fields)
    return ", ".join(f"{name} {value}" for name, value in values)


def race(ctx: SelectorContext, trials: Sequence[Trial]) -> Outcome:
    """Compare trials with the unpruned model on the calibration samples, and choose.

    Raises:
        LayerError: No trial can run.
    """
    assert ctx.compare is not None
    return Outcome(trials, ctx.compare(trials))


class Outcome:
    """The results of a race, and the choice that follows from them.

    Args:
        trials: The trials.
        results: Their results, in the same order.

    Attributes:
        best: Number of the chosen trial.
        second: Number of the runner-up: what would be chosen without the first; None if no other saw all samples.

    Raises:
        LayerError: No trial can run.
    """

    def __init__(self, trials: Sequence[Trial], results: Sequence[TrialResult]) -> None:
        self.trials, self.results = trials, results
        self.best, self.second = choose(trials, results)

    @property
    def chosen(self) -> Trial:
        """The chosen trial."""
        return self.trials[self.best]

    @property
    def rows(self) -> tuple[VerdictRow, ...]:
        """All trials with the means of their results."""
        return tuple(_row(trial, result) for trial, result in zip(self.trials, self.results, strict=True))

    def promise(self) -> Promise:
        """What the choice keeps on the calibration samples, and on new ones.

        Trials that left the race early are no part of the correction: they were clearly worse.
        """
        values = self.results[self.best].agreement
        finalists = _finalists(self.results)
        numbers = {number: place for place, number in enumerate(finalists)}

        def worth(drawn: Sequence[int]) -> Sequence[float]:
            resampled = [_resample(self.results[number], drawn) for number in finalists]
            best, _ = choose([self.trials[number] for number in finalists], resampled)
            return self.results[finalists[best]].agreement

        assert self.best in numbers
        found = corrected(len(values), worth)
        return Promise(
            agreement=statistics.fmean(values),
            corrected=found.mean if len(values) > 1 else statistics.fmean(values),
            low=max(0.0, found.low),
            high=min(1.0, found.high),
            samples=len(values),
            candidates=len(self.trials),
        )

    @property
    def _rank(self) -> str:
        """Whether the chosen trial is the best, or the standard one although another seems better."""
        means = [statistics.fmean(self.results[number].agreement) for number in _finalists(self.results)]
        best = statistics.fmean(self.results[self.best].agreement) == max(means)
        return "the best of" if best else "the standard way, and none is clearly better of"

    def sentence(self, promise: Promise) -> str:
        """State the chosen trial, what it promises, how sure the choice is, and the runner-up."""
        values = self.results[self.best].agreement
        samples, sure = len(values), share_of(values)
        ran = [item for item in self.results if item.refused is None]
        early = sum(len(item.agreement) < samples for item in ran)
        left = [f"{early} left early"] if early else []
        left += [f"{len(self.results) - len(ran)} refused"] if len(ran) < len(self.results) else []
        details = f" ({', '.join(left)})" if left else ""
        if samples > 1:
            seen = f"95 % interval {percent(sure.low)} to {percent(sure.high)}, {samples} samples"
        else:
            seen = "1 sample, so there is no interval"
        text = (
            f"verified without labels: {self.chosen.name} agrees with the unpruned model on"
            f" {percent(promise.agreement)} of the answer tokens ({seen}), {self._rank} {len(self.trials)}"
            f" candidates{details}"
        )
        if self.second is not None and samples > 1:
            text += (
                f"; corrected for having been picked {percent(promise.corrected)} ({percent(promise.low)} to"
                f" {percent(promise.high)})"
            )
        if len(ran) > 1 and len({item.agreement for item in ran}) == 1:
            text += f"; all {len(ran)} agree equally often: taken by cost, then divergence"
        if self.second is None:
            return f"{text}; no other saw all samples"
        other = self.results[self.second].agreement
        gain = difference([one - two for one, two in zip(values, other, strict=True)])
        text += (
            f"; next {self.trials[self.second].name} with {percent(statistics.fmean(other))} (difference"
            f" {100 * gain.mean:+.1f} points"
        )
        return f"{text}, 95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f})" if gain.known else f"{text})"


def _row(trial: Trial, result: TrialResult) -> VerdictRow:
    """A trial with the means of its result."""
    about: dict[str, Any] = {"layers": trial.layers, "setting": trial.setting}
    if result.refused is not None:
        return VerdictRow(**about, samples=0, refused=result.refused)
    return VerdictRow(
        **about,
        samples=len(result.agreement),
        agreement=statistics.fmean(result.agreement),
        divergence=statistics.fmean(result.divergence),
        average=result.average,
    )


def _resample(result: TrialResult, drawn: Sequence[int]) -> TrialResult:
    """A result on some of its samples, with repetitions."""
    return TrialResult(
        tuple(result.agreement[sample] for sample in drawn),
        tuple(result.divergence[sample] for sample in drawn),
        result.average,
    )


def candidate_layers(num_layers: int, feasible: Sequence[int], plateau: Plateau, most: int) -> list[int]:
    """The layers worth verifying: the nearest to the collapse, at most ``most`` of them, ascending.

    The window begins one layer before the drop and ends one layer behind the plateau, or without a plateau three layers
    behind the drop. Layers in it come first, then the nearest ones; of two that are equally near the earlier one.

    Args:
        num_layers: Layers of the model.
        feasible: Layers from 1 on before which pruning meets the budget.
        plateau: The plateau of the entropy curves.
        most: The largest number of layers.
    """
    start = max(1, plateau.drop - 1)
    end = min(num_layers - 1, (plateau.drop + 2 if plateau.last is None else plateau.last) + 1)
    nearest = sorted(feasible, key=lambda layer: (max(start - layer, layer - end, 0), layer))
    return sorted(nearest[:most])


def choose(trials: Sequence[Trial], results: Sequence[TrialResult]) -> tuple[int, int | None]:
    """The trial that agrees most with the unpruned model, and the runner-up.

    Only trials that saw all samples are chosen from. A trial that is marked as the standard one is chosen unless
    another is clearly better: unless the 95 % interval of the paired difference lies above zero. Otherwise, of equal
    mean agreement the cheapest is taken; of layer averages within 2 % of it, the one with the smallest mean divergence.

    Args:
        trials: The trials.
        results: Their results, in the same order.

    Returns:
        The position of the chosen trial and of the runner-up: what would be chosen without the first; None if no other
        trial saw all samples.

    Raises:
        LayerError: Every trial was refused.
    """
    finalists = _finalists(results)
    if not finalists:
        first = f": {results[0].refused}" if results else ""
        raise LayerError(f"none of the {len(results)} candidates can run{first}", "use another method or budget")
    best = _best(finalists, results)
    standard = next((number for number in finalists if trials[number].standard), None)
    if standard is not None and not _clearly_better(results[best], results[standard]):
        best = standard
    others = [number for number in finalists if number != best]
    return best, _best(others, results) if others else None


def _finalists(results: Sequence[TrialResult]) -> list[int]:
    """The results that ran and saw all samples."""
    ran = [number for number, result in enumerate(results) if result.refused is None]
    samples = max((len(results[number].agreement) for number in ran), default=0)
    return [number for number in ran if len(results[number].agreement) == samples]


def _best(numbers: Sequence[int], results: Sequence[TrialResult]) -> int:
    """The first by agreement, then cost, then divergence; then the order given."""
    most = max(statistics.fmean(results[number].agreement) for number in numbers)
    equal = [number for number in numbers if statistics.fmean(results[number].agreement) == most]
    cheapest = min(results[number].average for number in equal)
    equal = [number for number in equal if results[number].average <= cheapest * (1 + TIED_COST)]
    return min(equal, key=lambda number: statistics.fmean(results[number].divergence))


def _clearly_better(one: TrialResult, other: TrialResult) -> bool:
    """Whether the interval of the paired difference of the agreements lies above zero."""
    pairs = zip(one.agreement, other.agreement, strict=True)
    return difference([first - second for first, second in pairs]).low > 0


def percent(share: float) -> str:
    """A share as a text in percent."""
    return f"{100 * share:.1f} %"
