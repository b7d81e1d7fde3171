"""What a tune found, in plain sentences."""

from __future__ import annotations

from collections.abc import Sequence

from tokenprune.engine.trials.race import Goal
from tokenprune.tuning.intervals import Interval
from tokenprune.tuning.ranking import Ranked, Ranking

#: What is measured, the factor and the unit of its losses in texts.
LOSSES: dict[Goal, tuple[str, float, str]] = {
    "root_divergence": ("root of the divergence from the unpruned model", 1, "root nats"),
    "agreement": ("agreement with the unpruned model", 100, "points"),
    "divergence": ("divergence from the unpruned model", 1, "nats"),
    "distance": ("distance from the unpruned model", 1, "total variation"),
    "score": ("score of the answers", 100, "points"),
}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
#: Candidates within the noise that a sentence names.
MOST_NAMED = 5


def sentence(ranking: Ranking, goal: Goal) -> str:
    """One sentence: the best, who is within the noise of it, and what random loses."""
    best, chance = ranking.best, ranking.random
    where = f" ({quality(best)}, {ranking.samples} samples)"
    noise = _noise(ranking.within_noise)
    if ranking.undecided:
        return f"{no_winner(ranking)}; {best.name} stands for all{where}."
    if chance is None:
        return f"{best.name}{where}; {noise}; random could not run, so nothing was compared with it."
    if best.random:
        return f"nothing beats random at equal cost: {best.name} itself {_place(ranking)}{where}; {noise}."
    if not ranking.beats_random:
        equal = next(row for row in ranking.ranked if row.random and row.tied)
        loses = "loses only" if equal.difference.mean >= 0 else "differs by"
        return (
            f"nothing beats random at equal cost: {best.name} {_place(ranking)}{where}, and {equal.name} {loses}"
            f" {amount(equal.difference, goal)}, which is within the noise."
        )
    others = [row for row in ranking.within_noise if not row.random]
    seen = "" if chance.left is None else f" on the {chance.seen} samples that it saw"
    return f"{best.name}{where}; {_noise(others)}; {chance.name} loses by {amount(chance.difference, goal)}{seen}."


def no_winner(ranking: Ranking) -> str:
    """That no candidate can be told from another one, and what would help."""
    finalists = sum(row.left is None for row in ranking.ranked)
    return (
        f"no winner: the {finalists} candidates that saw all samples are equal on each of them, those at random, too"
        " (fewer tokens, more samples or another objective may tell them apart)"
    )


def copies_sentence(samples: int, copies: int) -> list[str]:
    """That some of the given samples did not count; nothing where all did.

    Args:
        samples: The samples that counted.
        copies: The others.
    """
    given = samples + copies
    are = "is a copy of another one" if copies == 1 else "are copies of others"
    return [f"{copies} of the {given} given samples {are}; each sample was counted once."] if copies else []


def quality(row: Ranked) -> str:
    """How close a candidate's answers are to the unpruned model's."""
    return f"agreement {100 * row.agreement.mean:.1f} %, divergence {row.divergence.mean:.4f} nats"


def amount(difference: Interval, goal: Goal) -> str:
    """A difference of losses with its interval and unit."""
    _, factor, unit = LOSSES[goal]
    low, high = factor * difference.low, factor * difference.high
    return f"{factor * difference.mean:.3g} {unit} [{low:.3g}, {high:.3g}]"


def _place(ranking: Ranking) -> str:
    """Why the best one is the best one: a cheaper one may be taken in place of the one with the lowest loss."""
    lowest = all(row.difference.mean >= 0 for row in ranking.ranked if row.left is None)
    return "has the lowest loss" if lowest else "is cheaper than the lowest loss and as good"


def _noise(rows: Sequence[Ranked]) -> str:
    if not rows:
        return "no other is within the noise"
    count = NUMBERS[len(rows)] if len(rows) < len(NUMBERS) else str(len(rows))
    names = ", ".join(row.name for row in rows[:MOST_NAMED]) + (", ..." if len(rows) > MOST_NAMED else "")
    return f"{count} {'other is' if len(rows) == 1 else 'others are'} within the noise ({names})"


def method_of(row: Ranked) -> str:
    """The method whose style a candidate has: variants are called ``METHOD: what differs``."""
    return "random" if row.random else row.name.partition(":")[0]
