"""Results of a tune in plain sentences."""

from collections.abc import Sequence

from tokenprune.budgets.label import in_words
from tokenprune.engine.trials.race import Goal
from tokenprune.stats.estimate import Estimate
from tokenprune.tuning.ranking import UNBOUNDED, Ranked, Ranking
from tokenprune.tuning.setup import TuneSetup

#: The quantity behind the losses of a goal, their factor and their unit in texts.
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


def race_sentences(rankings: Sequence[Ranking], setup: TuneSetup) -> tuple[str, str]:
    """Two sentences: what raced on which samples, and what the loss and its intervals are."""
    name, _, unit = LOSSES[setup.goal]
    candidates = sum(len(ranking.ranked) for ranking in rankings)
    budgets = ", ".join(in_words(ranking.budget) for ranking in rankings)
    answer = "first answer token" if setup.tokens == 1 else f"first {setup.tokens} answer tokens"
    how = "scored by the task" if setup.goal == "score" else f"compared on the {answer}, without labels"
    subtracted = "100 % minus the " if setup.goal in ("agreement", "score") else "the "
    kind = "by bootstrap over the samples" if setup.goal in UNBOUNDED else "Wilson's for shares of the samples"
    return (
        f"{candidates} candidates raced on {rankings[0].samples} samples of `{setup.data}` at {budgets}, {how}; those"
        f" that were clearly worse left early, and the best one is dropped with a probability of at most about"
        f" {setup.error:g}.",
        f"The loss is {subtracted}{name}, in {unit}, less is better; intervals are 95 %, {kind}, and differences are"
        " paired by sample.",
    )


def capital(text: str) -> str:
    """A text with a capital at its begin."""
    return text[:1].upper() + text[1:]


def quality(row: Ranked) -> str:
    """Say how close a candidate's answers are to the unpruned model's."""
    return f"agreement {100 * row.agreement.mean:.1f} %, divergence {row.divergence.mean:.4f} nats"


def amount(difference: Estimate, goal: Goal) -> str:
    """A difference of losses with its interval and unit."""
    _, factor, unit = LOSSES[goal]
    return f"{difference.written(factor, decimals(goal))} {unit}"


def decimals(goal: Goal) -> int:
    """The largest number of decimals of a loss: one of points, four of other units."""
    return 1 if LOSSES[goal][1] == 100 else 4


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
