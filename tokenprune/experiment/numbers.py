"""What the reports of an experiment say, computed once: Markdown and HTML show the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenprune.experiment.answers import Answers, difference
from tokenprune.experiment.choosing import Choices
from tokenprune.experiment.config import UNPRUNED
from tokenprune.experiment.gates import gates
from tokenprune.experiment.method_name import is_random
from tokenprune.experiment.runner import ExperimentResult
from tokenprune.experiment.stats import Estimate
from tokenprune.experiment.summary import SeriesSummary, by_budget, summarise
from tokenprune.experiment.tuned import TUNED

#: Layer averages that differ by more than this share are not the same cost.
SAME_COST = 0.05
OTHER_COST = (
    "† Not the same cost: the layer averages of the method and of random differ by more than"
    f" {100 * SAME_COST:.0f} %. A random choice at the method's own layers would be comparable."
)
#: Samples that could not be used and are named in the report.
MOST_NAMED = 5


@dataclass(frozen=True)
class Gain:
    """A method minus a random choice with the same budget, paired by question.

    Attributes:
        estimate: The gain.
        rival: The random method with the nearest layer average.
        average: The method's layer average.
        rival_average: The layer average of the random method.
    """

    estimate: Estimate
    rival: str
    average: float
    rival_average: float

    @property
    def same_cost(self) -> bool:
        """Whether both cost the same, nearly."""
        return same_cost(self.average, self.rival_average)

    @property
    def random_wins(self) -> bool:
        """Whether random is better beyond the interval."""
        return self.estimate.mean + self.estimate.half < 0

    def __str__(self) -> str:
        text = f"{100 * self.estimate.mean:+.1f} ± {100 * self.estimate.half:.1f}"
        return text if self.same_cost else f"{text} († {self.average:.0f} : {self.rival_average:.0f})"


@dataclass(frozen=True)
class Gains:
    """Every method against random choices.

    Attributes:
        budgets: The budgets, in the order of the main table.
        methods: Method -> its gain with each budget; None where the method or random did not run with it.
    """

    budgets: tuple[str, ...]
    methods: dict[str, tuple[Gain | None, ...]]

    @property
    def other_cost(self) -> bool:
        """Whether a method is compared with a random choice of another cost."""
        return any(not gain.same_cost for gains in self.methods.values() for gain in gains if gain)


@dataclass(frozen=True)
class ChosenLayers:
    """Layers, and why some methods prune before them.

    Attributes:
        layers: The layers.
        reason: Why.
        methods: The methods.
    """

    layers: tuple[int, ...]
    reason: str
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Numbers:
    """Everything that a report shows.

    Attributes:
        result: The experiment.
        summaries: The rows of the main table.
        sentences: What a reader must know before the table: the notes, then the gates.
        gains: Every method against random; None where no random method ran.
        types: The question types; empty if there is one.
        per_type: For each summary its accuracy per type; NaN without questions of it.
    """

    result: ExperimentResult
    summaries: Sequence[SeriesSummary]
    sentences: tuple[str, ...]
    gains: Gains | None
    types: tuple[str, ...]
    per_type: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, result: ExperimentResult) -> Numbers:
        """The numbers of a finished experiment."""
        summaries, answers = summarise(result), result.answers
        types = tuple(sorted(set(answers.questions.types.values())))
        types = types if len(types) > 1 else ()
        per_type = tuple(
            tuple(answers.of(item.method, item.budget).accuracy_of_type(kind) for kind in types) for item in summaries
        )
        sentences = (*notes(result), *gates(result, summaries))
        return cls(result, summaries, sentences, gains_over_random(answers, summaries), types, per_type)

    @property
    def layers(self) -> list[ChosenLayers]:
        """Which layers were chosen, why, and by which methods."""
        names = {key: item.method for key, item in self.result.answers.series.items()}
        return chosen_layers(self.result.choices, names)

    @property
    def size(self) -> str:
        """How many questions and pictures there are, and what the intervals are."""
        questions = self.result.answers.questions
        pictures = len(set(questions.groups.values()))
        return f"{len(questions.groups)} questions on {pictures} pictures; intervals are 95 %, clustered by picture."


def chosen_layers(choices: Choices, names: Mapping[str, str]) -> list[ChosenLayers]:
    """Choices of layers, put together where layers and reason are the same.

    Args:
        choices: Series key -> its layers, and why.
        names: Series key -> the name of its method; a key without a name stands for itself.
    """
    found: dict[tuple[tuple[int, ...], str], list[str]] = {}
    for key, choice in choices.items():
        name = key if "pruner" in choice else names.get(key, key)  # what was chosen beside the layer is the budget's
        found.setdefault((tuple(choice["layers"]), choice["reason"]), []).append(name)
    return [ChosenLayers(layers, reason, tuple(dict.fromkeys(methods))) for (layers, reason), methods in found.items()]


def same_cost(one: float, other: float) -> bool:
    """Whether two layer averages are the same cost, nearly."""
    return abs(one - other) <= SAME_COST * max(one, other)


def notes(result: ExperimentResult) -> list[str]:
    """What a reader must know before the table: unusable samples, methods left out, published settings."""
    out = list(result.remarks)
    if result.label_free:
        out.append("The task has no answers: scores are the agreement with the unpruned model's own answers.")
    if result.skipped:
        named = [f"{result.skipped[position]}" for position in sorted(result.skipped)[:MOST_NAMED]]
        more = len(result.skipped) - len(named)
        rest = f"; and {more} more, see skipped.jsonl" if more else ""
        count = "1 sample" if len(result.skipped) == 1 else f"{len(result.skipped)} samples"
        out.append(f"**{count} could not be used; no figure counts them:** {'; '.join(named)}{rest}.")
    for method, budget in result.answers.methods():
        answers = result.answers.of(method, budget)
        if method != UNPRUNED and answers.unpruned_samples:
            out.append(
                f"`{method}` with `{budget}` dropped nothing of {answers.unpruned_samples} of {len(answers)} samples:"
                " they have no more visual tokens than the budget keeps."
            )
    out += [f"The method `{title}` was left out: {why}." for title, why in result.left_out.items()]
    out += [f"The method `{title}` has the {settings}." for title, settings in result.settings.items()]
    tuned = {key: choice[TUNED] for key, choice in result.choices.items() if TUNED in choice}
    out += [f"The tune for `{key}`: {found['sentence']}" for key, found in tuned.items()]
    return out


def gains_over_random(answers: Answers, summaries: Sequence[SeriesSummary]) -> Gains | None:
    """Every method minus the random method with the nearest layer average, paired by question; None without one."""
    table = by_budget(summaries)
    if not any(is_random(method) for methods in table.values() for method in methods):
        return None
    methods = sorted({item.method for item in summaries if item.budget and not is_random(item.method)})
    found = {method: tuple(_gain(answers, row, method) for row in table.values()) for method in methods}
    return Gains(tuple(table), found)


def _gain(answers: Answers, methods: dict[str, SeriesSummary], method: str) -> Gain | None:
    """The gain of a method among those of one budget."""
    random_methods = [item for name, item in methods.items() if is_random(name)]
    if method not in methods or not random_methods:
        return None
    own = methods[method]
    rival = min(random_methods, key=lambda item: (abs(item.average - own.average), item.method))
    return Gain(minus(answers, own, rival), rival.method, own.average, rival.average)


def minus(answers: Answers, one: SeriesSummary, other: SeriesSummary) -> Estimate:
    """The score of a method minus that of another one, paired by question."""
    return difference(
        answers.of(one.method, one.budget).by_question(),
        answers.of(other.method, other.budget).by_question(),
        answers.questions.groups,
    )
