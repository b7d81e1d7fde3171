"""The one finding of an experiment that stands out, and what it may and may not claim."""

import math
from dataclasses import dataclass

from tokenprune.budgets.label import in_words
from tokenprune.core.references import is_random, is_reference, same_cost
from tokenprune.experiment.report_data import Gain, ReportData
from tokenprune.experiment.summary import SeriesSummary, by_budget
from tokenprune.report.page import Finding

#: On fewer pictures nothing is beyond chance: five of five are won by luck in one of sixteen runs, more than 5 %.
FEWEST_PICTURES = 6


@dataclass(frozen=True)
class Duel:
    """The best method of a budget against the best random choice that costs as much, or more where none costs as much.

    Attributes:
        gain: The best method that has such a random choice, minus the best of its random choices.
        methods: How many methods the best one was chosen from.
        pictures: How many pictures the questions of both are about.
    """

    gain: Gain
    methods: int
    pictures: int

    @property
    def enough(self) -> bool:
        """Whether there are enough pictures for the interval to mean anything."""
        return self.pictures >= FEWEST_PICTURES

    @property
    def won(self) -> bool:
        """Whether the method is better beyond the interval."""
        return self.gain.points.low > 0 and self.enough

    @property
    def lost(self) -> bool:
        """Whether random is better beyond the interval, at the same cost. A dearer one proves nothing by winning."""
        return self.gain.points.high < 0 and self.enough and self.gain.same_cost


def find(data: ReportData) -> Finding:
    """The finding.

    Of each budget, the method with the highest score is compared with the best random choice of its cost. What
    stands out is the budget at which random is beaten most surely; else one at which random wins; else that nothing
    can be told apart.
    """
    duels = list(_duels(data))
    if not duels:
        return _against_unpruned(data)
    won, lost = [duel for duel in duels if duel.won], [duel for duel in duels if duel.lost]
    if won:
        top = max(won, key=lambda duel: duel.gain.points.low)
        text = f"{_sentence(top, data)} {_beyond(won, duels, 'beats random')}"
        if lost:
            text += f" Random wins with {', '.join(in_words(duel.gain.own.budget) for duel in lost)}."
        return Finding(text + _luck(top), "better")
    if lost:
        top = min(lost, key=lambda duel: duel.gain.points.high)
        return Finding(f"{_sentence(top, data)} {_beyond(lost, duels, 'loses to random')}", "worse")
    top = max(duels, key=lambda duel: duel.gain.points.mean)
    return Finding(f"{_sentence(top, data)} {_undecided(top, data)}", "open")


def _duels(data: ReportData) -> list[Duel]:
    found = []
    known = [item for item in data.summaries if math.isfinite(item.accuracy.mean)]
    for methods in by_budget(known).values():
        chance = [item for item in methods.values() if is_random(item.method)]
        pairs = [(item, _rivals(item, chance)) for item in methods.values() if not is_reference(item.method)]
        pairs = [(item, rivals) for item, rivals in pairs if rivals]
        if pairs:
            best, rivals = max(pairs, key=lambda pair: pair[0].accuracy.mean)
            rival = max(rivals, key=lambda item: item.accuracy.mean)
            gain = Gain.of(data.result.answers, best, rival)
            found.append(Duel(gain, len(pairs), _pictures(data, best, rival)))
    return found


def _pictures(data: ReportData, *both: SeriesSummary) -> int:
    """The number of pictures of the questions that both have answered."""
    answers = data.result.answers
    answered = [answers.of(item.method, item.budget).by_question().keys() for item in both]
    return len({answers.questions.groups[position] for position in answered[0] & answered[1]})


def _rivals(item: SeriesSummary, chance: list[SeriesSummary]) -> list[SeriesSummary]:
    """The random choices of the same cost; without one those that cost more, which are harder to beat."""
    equal = [rival for rival in chance if same_cost(item.average, rival.average)]
    return equal or [rival for rival in chance if rival.average > item.average]


def _sentence(duel: Duel, data: ReportData) -> str:
    best, rival, points = duel.gain.own, duel.gain.rival, duel.gain.points
    more, points = ("more", points) if points.mean >= 0 else ("less", -points)
    cost = f" of the same cost ({rival.accuracy} %)"
    if not duel.gain.same_cost:
        cost = f", which costs more ({rival.accuracy} %; layer averages {best.average:.0f} : {rival.average:.0f})"
    return (
        f"With {in_words(best.budget)}, `{best.method}` {_score(data)} {best.accuracy} % at {_tokens(best)}:"
        f" {points} points {more} than `{rival.method}`, the best random choice{cost}."
    )


def _score(data: ReportData) -> str:
    return "agrees with the unpruned model on" if data.result.label_free else "scores"


def _tokens(item: SeriesSummary) -> str:
    return f"{item.visual:.0f} visual tokens"


def _beyond(some: list[Duel], duels: list[Duel], what: str) -> str:
    if len(duels) == 1:
        return "The difference is beyond its 95 % interval."
    return f"The best method {what} beyond the 95 % interval with {len(some)} of {len(duels)} budgets."


def _luck(duel: Duel) -> str:
    if duel.methods < 3:
        return ""
    return f" It is the best of {duel.methods} methods on these questions, so a part of its lead may be luck."


def _undecided(duel: Duel, data: ReportData) -> str:
    """Why nothing follows from the best method's comparison."""
    questions, points = data.result.answers.questions, duel.gain.points
    least = f"{100 * points.half:.0f} points"
    count, pictures = len(questions.groups), len(set(questions.groups.values()))
    if not points.known:
        return f"All {count} questions are about one picture, so there is no interval: nothing follows for others."
    if points.beyond_zero and not duel.enough:
        return (
            f"{pictures} pictures are too few to trust that: with fewer than {FEWEST_PICTURES}, chance alone is that"
            " lucky in more than 5 % of runs."
        )
    if points.beyond_zero:
        return (
            "That is beyond the 95 % interval, but a random choice that costs more proves nothing by winning: nobody"
            " knows from this run whether the method is better than chance at its own cost."
        )
    return (
        f"That is within the 95 % interval: {count} questions on {pictures} pictures cannot tell differences below"
        f" about {least}, so nobody knows from this run whether the method is better than chance."
    )


def _against_unpruned(data: ReportData) -> Finding:
    """Where nothing can be compared with random: how much of the unpruned model's score is left."""
    methods = [item for item in data.summaries if item.budget and not is_reference(item.method)]
    methods = [item for item in methods if math.isfinite(item.accuracy.mean)]
    chance = any(is_random(item.method) for item in data.summaries)
    why = (
        "No random choice in this run costs the same as a method"
        if chance
        else "No random choice of tokens ran, so nothing is compared with chance"
    )
    if not methods:
        return Finding(f"{why}: only the unpruned model and what methods are compared with have answers.")
    best = max(methods, key=lambda item: item.accuracy.mean)
    return Finding(
        f"`{best.method}` with {in_words(best.budget)} {_score(data)} {best.accuracy} % at {_tokens(best)},"
        f" {best.gain.written(signed=True)} points from the unpruned model. {why}."
    )
