"""Everything that the reports of an experiment say, computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenprune.core.references import DOWNSAMPLED, SAME_COST, UNPRUNED, is_random, same_cost
from tokenprune.experiment.answers import Answers, difference
from tokenprune.experiment.choosing import Choices
from tokenprune.experiment.model_checks import model_checks
from tokenprune.experiment.result import ExperimentResult
from tokenprune.experiment.summary import SeriesSummary, by_budget, summarise
from tokenprune.experiment.tuned import TUNED
from tokenprune.selectors.verdict import Promise
from tokenprune.stats.estimate import Estimate

OTHER_COST = (
    "† Not the same cost: the layer averages of the method and of random differ by more than"
    f" {100 * SAME_COST:.0f} %. A random choice at the method's own layers would be comparable."
)
#: Samples that could not be used and are named in the report.
MOST_NAMED = 5


@dataclass(frozen=True)
class Gain:
    """A method minus a random choice with the same budget.

    Attributes:
        own: The method.
        rival: The random choice.
        points: The difference of their scores, paired by question.
    """

    own: SeriesSummary
    rival: SeriesSummary
    points: Estimate

    @classmethod
    def of(cls, answers: Answers, own: SeriesSummary, rival: SeriesSummary) -> Gain:
        """Compute a gain from the answers of both."""
        mine, theirs = (answers.of(item.method, item.budget).by_question() for item in (own, rival))
        return cls(own, rival, difference(mine, theirs, answers.questions.groups))

    @property
    def same_cost(self) -> bool:
        """Whether both cost the same, nearly."""
        return same_cost(self.own.average, self.rival.average)

    def __str__(self) -> str:
        text = self.points.written(signed=True)
        return text if self.same_cost else f"{text} († {self.own.average:.0f} : {self.rival.average:.0f})"


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
class Promised:
    """A method whose selector verified what it chose: what that promised, and what it kept.

    Attributes:
        summary: The method's row of the main table.
        promise: What the calibration samples promised.
    """

    summary: SeriesSummary
    promise: Promise

    @property
    def corrected(self) -> Estimate:
        """The promise without the gain from having been picked."""
        return Estimate(self.promise.corrected, self.promise.low, self.promise.high)


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows.

    Attributes:
        result: The experiment.
        summaries: The rows of the main table.
        sentences: The notes that a reader needs before the table, then the checks of the model.
        gains: Budget -> method -> its gain over the random method with the nearest layer average.
        types: The question types; empty if there is one.
        per_type: For each summary its accuracy per type; NaN without questions of it.
    """

    result: ExperimentResult
    summaries: Sequence[SeriesSummary]
    sentences: tuple[str, ...]
    gains: dict[str, dict[str, Gain]]
    types: tuple[str, ...]
    per_type: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, result: ExperimentResult) -> ReportData:
        """Compute the numbers of a finished experiment."""
        summaries, answers = summarise(result), result.answers
        types = tuple(sorted(set(answers.questions.types.values())))
        types = types if len(types) > 1 else ()
        per_type = tuple(
            tuple(answers.of(item.method, item.budget).accuracy_of_type(kind) for kind in types) for item in summaries
        )
        sentences = (*notes(result), *model_checks(result, summaries))
        return cls(result, summaries, sentences, gains_over_random(answers, summaries), types, per_type)

    @property
    def layers(self) -> list[ChosenLayers]:
        """The chosen layers, why, and by which methods."""
        names = {key: item.method for key, item in self.result.answers.series.items()}
        return chosen_layers(self.result.choices, names)

    @property
    def promised(self) -> list[Promised]:
        """What verified choices promised, in the order of the main table. Choices that older files hold have none."""
        found = {
            (self.result.answers.series[key].method, self.result.answers.series[key].budget): choice["promise"]
            for key, choice in self.result.choices.items()
            if "promise" in choice and key in self.result.answers.series
        }
        rows = [(item, found.get((item.method, item.budget))) for item in self.summaries]
        return [Promised(item, Promise(**promise)) for item, promise in rows if promise is not None]

    @property
    def size(self) -> str:
        """The number of questions and pictures, and the kind of the intervals."""
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


def notes(result: ExperimentResult) -> list[str]:
    """List whatever a reader must know before the table: unusable samples, methods left out, published settings."""
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
    out += _about_hard(result.answers)
    out += [f"The method `{title}` was left out: {why}." for title, why in result.left_out.items()]
    out += [f"The method `{title}` has the {settings}." for title, settings in result.settings.items()]
    tuned = {key: choice[TUNED] for key, choice in result.choices.items() if TUNED in choice}
    out += [f"The tune for `{key}`: {found['sentence']}" for key, found in tuned.items()]
    return out


def _about_hard(answers: Answers) -> list[str]:
    """What the column of hard questions counts; nothing where the model was not shown smaller pictures."""
    budgets = [budget for method, budget in answers.methods() if method == DOWNSAMPLED]
    if not budgets:
        return []
    counts = ", ".join(f"{len(answers.hard_questions(budget) or ())} with `{budget}`" for budget in budgets)
    return [
        f"`{DOWNSAMPLED}` is the unpruned model on smaller pictures. Hard questions of a budget are those that it"
        f" answers wrong, and right on the pictures as they are: {counts}, of {len(answers.questions.groups)}."
        " `hard %` is the accuracy on them alone; where they are few, the intervals are wide."
    ]


def gains_over_random(answers: Answers, summaries: Sequence[SeriesSummary]) -> dict[str, dict[str, Gain]]:
    """Compare every method with the random method of its budget whose layer average is the nearest."""
    gains: dict[str, dict[str, Gain]] = {}
    for budget, methods in by_budget(summaries).items():
        chance = [item for item in methods.values() if is_random(item.method)]
        for own in methods.values() if chance else ():
            if not is_random(own.method):
                rival = min(chance, key=lambda item: (abs(item.average - own.average), item.method))
                gains.setdefault(budget, {})[own.method] = Gain.of(answers, own, rival)
    return gains
