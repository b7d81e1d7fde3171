"""The order of candidates after a race, for one budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from tokenprune.config import Method
from tokenprune.engine.trials.fidelity import Fidelity
from tokenprune.errors import ConfigError
from tokenprune.pruners.base import Pruner
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.random import Random
from tokenprune.tuning.intervals import Interval, bootstrap

#: Budgets are met in whole tokens, so layer averages that differ by less than this share are the same cost.
SAME_COST = 0.1


def is_random(pruner: Pruner) -> bool:
    """Whether a pruner keeps tokens at random."""
    return isinstance(pruner, TopK) and isinstance(pruner.scorer, Random)


@dataclass(frozen=True)
class Measured:
    """A candidate that ran.

    Attributes:
        name: The candidate's name, unique for its budget.
        origin: ``named``, ``variant``, ``composition`` or ``random``; see :class:`tokenprune.tuning.setting.Candidate`.
        method: The method, with fixed layers and its budget.
        fidelity: What it did to the samples that it saw, in the order of the race.
        loss: What the race made small, ``[samples]``.
        left: After how many samples it left the race; None if it saw all.
    """

    name: str
    origin: str
    method: Method
    fidelity: Fidelity = field(repr=False)
    loss: Tensor = field(repr=False)
    left: int | None = None


@dataclass(frozen=True)
class Ranked:
    """One row of the ranked table. Intervals are those of the bootstrap over the samples.

    Attributes:
        name: The candidate.
        origin: ``named``, ``variant``, ``composition`` or ``random``; see :class:`tokenprune.tuning.setting.Candidate`.
        method: The method, with fixed layers and its budget.
        budget: The budget in a few words.
        loss: What the tune makes small.
        agreement: Share of answer tokens that are the unpruned model's.
        divergence: KL divergence from the unpruned model, nats.
        difference: Loss minus that of the best candidate, paired by sample, on the samples that both saw.
        seen: Samples that it saw.
        left: After how many samples it left the race; None if it saw all.
        average: Visual tokens averaged over all layers, mean.
        flops: FLOPs of the decoder's prefill as a share of the unpruned one's, mean; NaN without a closed form.
        random: Whether it keeps tokens at random.
        tied: Whether it saw all samples and is not worse than the best one beyond the noise.
        samples: What it did to every sample that it saw.
        losses: The loss of every sample that it saw, ``[samples]``.
    """

    name: str
    origin: str
    method: Method
    budget: str
    loss: Interval
    agreement: Interval
    divergence: Interval
    difference: Interval
    seen: int
    left: int | None
    average: float
    flops: float
    random: bool
    tied: bool
    samples: Fidelity = field(repr=False, compare=False)
    losses: Tensor = field(repr=False, compare=False)


@dataclass(frozen=True)
class Ranking:
    """All candidates of one budget, the best first.

    Attributes:
        budget: The budget in a few words.
        ranked: The candidates that ran: the best, the others that saw all samples, those that left the race.
        refused: Candidates that cannot run, and why.
        samples: Samples of the race.
    """

    budget: str
    ranked: tuple[Ranked, ...]
    refused: Mapping[str, str]
    samples: int

    @property
    def best(self) -> Ranked:
        """The winner: the lowest mean loss of those that saw all samples, or a cheaper one that is as good."""
        return self.ranked[0]

    @property
    def undecided(self) -> bool:
        """Whether candidates at random and others saw all samples, and all have the same loss on each of them."""
        finalists = [row for row in self.ranked if row.left is None]
        equal = all(row.losses.equal(self.best.losses) for row in finalists)
        return equal and len({row.random for row in finalists}) == 2

    @property
    def within_noise(self) -> list[Ranked]:
        """The other candidates that are not worse than the best beyond the noise."""
        return [row for row in self.ranked[1:] if row.tied]

    @property
    def random(self) -> Ranked | None:
        """The best candidate that keeps tokens at random; None if none could run."""
        return next((row for row in self.ranked if row.random), None)

    @property
    def beats_random(self) -> bool:
        """Whether the best candidate beats every random one at this cost, beyond the noise."""
        chance = [row for row in self.ranked if row.random]
        return bool(chance) and not self.best.random and not any(row.tied for row in chance)


def rank(budget: str, measured: Sequence[Measured], refused: Mapping[str, str], samples: int, seed: int = 0) -> Ranking:
    """Order the candidates of a race.

    Args:
        budget: The budget in a few words.
        measured: Candidates that ran.
        refused: Candidates that cannot run, and why.
        samples: Samples of the race.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: No candidate could run, or none but random ones.
    """
    finalists = [item for item in measured if item.left is None]
    if not finalists or (refused and all(is_random(item.method.pruner) for item in measured)):
        name, reason = next(iter(refused.items()), ("", ""))
        first = f"; the first, {name}: {reason}" if name else ""
        what = f"budget '{budget}': no candidate can run{first}"
        raise ConfigError(what, "name other candidates, or raise the budget")
    best = _cheapest(finalists, min(finalists, key=_order), seed)
    rows = [_row(item, best, budget, seed) for item in measured]
    rows.sort(key=lambda row: (row.name != best.name, row.left is not None, row.difference.mean, row.random))
    return Ranking(budget, tuple(rows), dict(refused), samples)


def _cheapest(finalists: Sequence[Measured], lowest: Measured, seed: int) -> Measured:
    """The lowest loss, or a cheaper candidate that is as good: whose loss is at most one standard error higher."""
    equal = [item for item in finalists if item is lowest or _within_one_error(_difference(item, lowest, seed))]
    limit = min(map(_average, equal)) * (1 + SAME_COST)
    if _average(lowest) <= limit:
        return lowest
    return min((item for item in equal if _average(item) <= limit), key=_order)


def _order(item: Measured) -> tuple[float, bool]:
    """By the mean loss; of equal candidates those at random come last: chance wins nothing by standing first."""
    return float(item.loss.double().mean()), is_random(item.method.pruner)


def _within_one_error(difference: Interval) -> bool:
    """Whether a mean difference is at most a standard error: a quarter of the 95 % interval, nearly."""
    return difference.mean <= (difference.high - difference.low) / 4


def _average(item: Measured) -> float:
    return float(item.fidelity.average.double().mean())


def _difference(item: Measured, other: Measured, seed: int) -> Interval:
    """Loss of an item minus that of another one, on the samples that both saw."""
    both = min(len(item.loss), len(other.loss))
    return bootstrap(item.loss[:both].double() - other.loss[:both].double(), seed)


def _row(item: Measured, best: Measured, budget: str, seed: int) -> Ranked:
    difference = _difference(item, best, seed)
    flops = item.fidelity.flops.double().mean()
    return Ranked(
        name=item.name,
        origin=item.origin,
        method=item.method,
        budget=budget,
        loss=bootstrap(item.loss, seed),
        agreement=bootstrap(item.fidelity.agreement, seed),
        divergence=bootstrap(item.fidelity.divergence, seed),
        difference=difference,
        seen=len(item.loss),
        left=item.left,
        average=_average(item),
        flops=float(flops),
        random=is_random(item.method.pruner),
        tied=item.left is None and difference.low <= 0,
        samples=item.fidelity,
        losses=item.loss,
    )


def pareto_front(rows: Sequence[Ranked]) -> list[Ranked]:
    """The rows that no other one beats in both cost and loss, the cheapest first. Those that left are not compared."""
    front: list[Ranked] = []
    lowest = math.inf
    for row in sorted((row for row in rows if row.left is None), key=lambda row: (row.average, row.loss.mean)):
        if row.loss.mean < lowest:
            front.append(row)
            lowest = row.loss.mean
    return front
