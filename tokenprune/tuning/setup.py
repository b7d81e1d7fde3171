"""The settings of a tune that its reports show."""

from dataclasses import dataclass

from tokenprune.engine.trials.race import Goal


@dataclass(frozen=True)
class TuneSetup:
    """A tune: the model, the samples, and the goal.

    Attributes:
        model: The model, in words.
        data: The samples, in words.
        goal: The loss of the race.
        tokens: Answer tokens that were compared.
        error: Probability that a race drops its best candidate.
        seconds: How long the measurements of this call took; what an earlier call measured is not in it.
        copies: How many of the given samples are copies of others, which do not count.
    """

    model: str
    data: str
    goal: Goal
    tokens: int = 1
    error: float = 0.05
    seconds: float = 0.0
    copies: int = 0
