"""The summary of an experiment: one row per method and budget, averaged over seeds."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenprune.core.references import UNPRUNED
from tokenprune.experiment.answers import MethodAnswers, difference
from tokenprune.experiment.result import ExperimentResult
from tokenprune.stats.estimate import Estimate


@dataclass(frozen=True)
class SeriesSummary:
    """One row of the table: a method with a budget, averaged over its seeds.

    Attributes:
        method: The method's name in tables.
        budget: The budget in a few words; empty for the unpruned model.
        accuracy: Mean score, from 0 to 1.
        kept: Accuracy as a share of the unpruned model's, on the questions that both have answered.
        gain: Accuracy minus that of the unpruned model, paired by question.
        agreement: Share of the answers that are the unpruned model's, word for word; None if it was not measured.
        divergence: Mean divergence from the unpruned model over the tokens of its answers, in nats; None if it was not
            measured.
        visual: Visual tokens per sample after the last stage, mean.
        average: Visual tokens per sample and decoder layer, mean.
        flops_reduction: Saved share of the decoder's prefill FLOPs; NaN where the FLOPs are unknown.
        kv_bytes: Bytes of the KV cache per sample, mean; NaN where unknown.
        time_ratio: Median prefill time divided by that of the unpruned model; NaN without timings.
        time_spread: Smallest and largest of these ratios.
        seeds: Number of seeds.
        label_free: Whether scores are agreement with the unpruned model, as the task has no answers.
        hard: Mean score on the hard questions of the budget, see
            :meth:`tokenprune.experiment.answers.Answers.hard_questions`; None without any, and where they are unknown.
        hard_count: Number of these questions; NaN where they are unknown.
    """

    method: str
    budget: str
    accuracy: Estimate
    kept: float
    gain: Estimate
    agreement: Estimate | None
    divergence: Estimate | None
    visual: float
    average: float
    flops_reduction: float
    kv_bytes: float
    time_ratio: float
    time_spread: tuple[float, float]
    seeds: int
    label_free: bool = False
    hard: Estimate | None = None
    hard_count: float = math.nan


def summarise(result: ExperimentResult) -> list[SeriesSummary]:
    """The rows of the table: the unpruned model first, then the largest budget; the best method of a budget first."""
    unpruned = result.answers.unpruned
    summaries = [
        _summarise_method(result, method, budget, result.answers.of(method, budget), unpruned)
        for method, budget in result.answers.methods()
    ]
    most_tokens: dict[str, float] = defaultdict(float)  # of any method, by budget
    for item in summaries:
        most_tokens[item.budget] = max(most_tokens[item.budget], item.visual)
    return sorted(
        summaries, key=lambda item: (-most_tokens[item.budget], item.budget, -_known(item.accuracy.mean), item.method)
    )


def _summarise_method(
    result: ExperimentResult, method: str, budget: str, answers: MethodAnswers, unpruned: MethodAnswers
) -> SeriesSummary:
    own = method == UNPRUNED  # equal to itself by definition, so these intervals have no width
    scores = answers.by_question()
    whole = unpruned.by_question()
    both = [position for position in scores if position in whole]  # all of them, once the run has finished
    mine, reference = (math.fsum(values[at] for at in both) for values in (scores, whole))
    known = result.answers.hard_questions(budget)
    hard = {position: score for position, score in scores.items() if position in (known or ())}
    keys = [key for key, item in result.answers.series.items() if item.method == method and item.budget == budget]
    ratios = [ratio for key in keys for ratio in result.timing.get(key, ())]
    return SeriesSummary(
        method=method,
        budget=budget,
        accuracy=answers.share(scores),
        kept=mine / reference if reference else math.nan,
        gain=Estimate.exact(0.0) if own else difference(scores, whole, result.answers.questions.groups),
        agreement=Estimate.exact(1.0) if own else answers.share(answers.agreement_by_question()),
        divergence=answers.divergence(),
        visual=answers.mean("visual_after"),
        average=answers.layer_average(),
        flops_reduction=1 - answers.mean("flops") / answers.mean("flops_unpruned"),
        kv_bytes=answers.mean("kv_bytes"),
        time_ratio=median(ratios) if not own else 1.0 if result.timing else math.nan,
        time_spread=(min(ratios), max(ratios)) if ratios else (math.nan, math.nan),
        seeds=len(answers.seeds),
        label_free=result.label_free,
        hard=answers.share(hard) if hard else None,
        hard_count=math.nan if known is None else len(hard),
    )


def _known(score: float) -> float:
    """A score for sorting: an unknown one (NaN) is the lowest."""
    return -math.inf if math.isnan(score) else score


def median(values: Sequence[float]) -> float:
    """The median; NaN without values."""
    return statistics.median(values) if values else math.nan


def by_budget(summaries: Iterable[SeriesSummary]) -> dict[str, dict[str, SeriesSummary]]:
    """Budget -> method -> summary, in the order of the table, without the unpruned model."""
    table: dict[str, dict[str, SeriesSummary]] = defaultdict(dict)
    for item in summaries:
        if item.budget:
            table[item.budget][item.method] = item
    return table
