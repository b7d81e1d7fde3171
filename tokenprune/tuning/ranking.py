"""The order of candidates after a race, for one budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from tokenprune.config import Method
from tokenprune.engine.trials.fidelity import Fidelity
from tokenprune.engine.trials.race import Goal
from tokenprune.errors import ConfigError
from tokenprune.pruners.base import Pruner
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.random import Random
from tokenprune.stats import clustered
from tokenprune.stats.bootstrap import bootstrap
from tokenprune.stats.estimate import Estimate

#: A candidate is cheaper than another one of the same budget from this share of its layer average on: budgets are met
#: in whole tokens, so smaller differences are chance.
CHEAPER = 0.1
#: Goals whose losses have no largest value; those of the others are from 0 to 1.
UNBOUNDED: frozenset[Goal] = frozenset({"root_divergence", "divergence"})


def keeps_at_random(pruner: Pruner) -> bool:
    """Whether a pruner keeps tokens at random, whatever its method is called."""
    return isinstance(pruner, TopK) and isinstance(pruner.scorer, Random)


@dataclass(frozen=True)
class Measured:
    """A candidate that ran.

    Attributes:
        name: The candidate's name, unique for its budget.
        origin: ``named``, ``variant``, ``composition`` or ``random``; see
            :class:`tokenprune.tuning.candidate_maker.Candidate`.
        method: The method, with fixed layers and its budget.
        samples: How it changed every sample that it saw, in the order of the race.
        losses: The loss of every sample that it saw, ``[samples]``.
        left: After how many samples it left the race; None if it saw all.
    """

    name: str
    origin: str
    method: Method
    samples: Fidelity = field(repr=False, compare=False)
    losses: Tensor = field(repr=False, compare=False)
    left: int | None

    @property
    def seen(self) -> int:
        """The number of samples that it saw."""
        return len(self.losses)

    @property
    def average(self) -> float:
        """Visual tokens averaged over all layers, mean."""
        return float(self.samples.average.double().mean())

    @property
    def flops(self) -> float:
        """FLOPs of the decoder's prefill as a share of the unpruned one's, mean; NaN without a closed form."""
        return float(self.samples.flops.double().mean())

    @property
    def random(self) -> bool:
        """Whether it keeps tokens at random."""
        return keeps_at_random(self.method.pruner)


@dataclass(frozen=True)
class Ranked(Measured):
    """One row of the ranked table. Intervals are over the samples.

    Attributes:
        budget: The budget in a few words.
        loss: Mean of the losses.
        agreement: Share of answer tokens that are the unpruned model's.
        divergence: KL divergence from the unpruned model, nats.
        difference: Loss minus that of the best candidate, paired by sample, on the samples that both saw.
    """

    budget: str
    loss: Estimate
    agreement: Estimate
    divergence: Estimate
    difference: Estimate

    @property
    def tied(self) -> bool:
        """Whether it saw all samples and is not worse than the best one beyond the noise."""
        return self.left is None and self.difference.low <= 0


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


def rank(
    budget: str,
    measured: Sequence[Measured],
    refused: Mapping[str, str],
    samples: int,
    goal: Goal = "root_divergence",
    seed: int = 0,
) -> Ranking:
    """Order the candidates of a race.

    Args:
        budget: The budget in a few words.
        measured: Candidates that ran.
        refused: Candidates that cannot run, and why.
        samples: Samples of the race.
        goal: The kind of the losses, which decides their intervals: shares, or by bootstrap.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: No candidate could run, or none but random ones.
    """
    finalists = [item for item in measured if item.left is None]
    if not finalists or (refused and all(item.random for item in measured)):
        name, reason = next(iter(refused.items()), ("", ""))
        first = f"; the first, {name}: {reason}" if name else ""
        what = f"budget '{budget}': no candidate can run{first}"
        raise ConfigError(what, "name other candidates, or raise the budget")
    intervals = _Intervals(goal not in UNBOUNDED, seed)
    best = _cheapest(finalists, min(finalists, key=_order), intervals)
    rows = [_row(item, best, budget, intervals) for item in measured]
    rows.sort(key=lambda row: (row.name != best.name, row.left is not None, row.difference.mean, row.random))
    return Ranking(budget, tuple(rows), dict(refused), samples)


@dataclass(frozen=True)
class _Intervals:
    """The intervals of losses.

    Attributes:
        bounded: Whether losses are from 0 to 1.
        seed: Seed of the bootstrap, for losses that have no largest value.
    """

    bounded: bool
    seed: int

    def loss(self, losses: Tensor) -> Estimate:
        """The mean of losses, ``[samples]``."""
        return clustered.share(losses.tolist()) if self.bounded else bootstrap(losses, self.seed)

    def difference(self, item: Measured, other: Measured) -> Estimate:
        """Loss of an item minus that of another one, on the samples that both saw."""
        if item is other:
            return Estimate.exact(0.0)
        both = min(item.seen, other.seen)
        values = item.losses[:both].double() - other.losses[:both].double()
        return clustered.difference(values.tolist()) if self.bounded else bootstrap(values, self.seed)


def _cheapest(finalists: Sequence[Measured], lowest: Measured, intervals: _Intervals) -> Measured:
    """The lowest loss, or a cheaper candidate that is as good: whose loss is at most one standard error higher."""
    equal = [item for item in finalists if _within_one_error(intervals.difference(item, lowest))]
    limit = min(item.average for item in equal) * (1 + CHEAPER)
    if lowest.average <= limit:
        return lowest
    return min((item for item in equal if item.average <= limit), key=_order)


def _order(item: Measured) -> tuple[float, bool]:
    """By the mean loss; of equal candidates those at random come last: chance wins nothing by standing first."""
    return float(item.losses.double().mean()), item.random


def _within_one_error(difference: Estimate) -> bool:
    """Whether a mean difference is at most a standard error: a quarter of the 95 % interval, nearly."""
    return difference.mean <= difference.half / 2


def _row(item: Measured, best: Measured, budget: str, intervals: _Intervals) -> Ranked:
    return Ranked(
        **vars(item),
        budget=budget,
        loss=intervals.loss(item.losses),
        agreement=clustered.share(item.samples.agreement.tolist()),
        divergence=bootstrap(item.samples.divergence, intervals.seed),
        difference=intervals.difference(item, best),
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
