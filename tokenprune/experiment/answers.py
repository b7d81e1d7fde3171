"""Answers as the tables need them, compactly: some bytes per answer, so that a long experiment fits in memory.

All sums are exact or correctly rounded, so they do not depend on the order of the rows. The tables of an experiment
that was stopped, or shared by workers, are those of one that ran in one go.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

from tokenprune.core.references import DOWNSAMPLED, UNPRUNED
from tokenprune.core.text import well_formed
from tokenprune.output.lines import Row
from tokenprune.stats import clustered
from tokenprune.stats.estimate import Estimate

#: Numbers of a row that are averaged. One that is null makes the average unknown (NaN).
AVERAGED = ("visual_after", "flops", "flops_unpruned", "kv_bytes")
#: The least score of a right answer.
RIGHT = 0.5


@dataclass
class Questions:
    """The questions, which all series share.

    Attributes:
        groups: The image of each question, by position; intervals are clustered by it.
        types: The type of each question, by position.
        answers: How often each answer is the expected one, by question type.
    """

    groups: dict[int, str] = field(default_factory=dict)
    types: dict[int, str] = field(default_factory=dict)
    answers: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Take up the question of a row."""
        if row["position"] not in self.groups:
            self.groups[row["position"]] = row["group"]
            self.types[row["position"]] = row["type"]
            self.answers.setdefault(row["type"], Counter())[row["answer"]] += 1


@dataclass
class SeriesAnswers:
    """The answers of one method with one budget and seed.

    Attributes:
        method: The method's name in tables.
        budget: The budget in a few words; empty for the unpruned model.
        seed: The seed, or None.
        positions: The question of each answer.
        scores: The score of each answer, from 0 to 1.
        averages: The layer average of each answer.
        divergences: The divergence of each answer; empty if it was not measured.
        answer_digests: A digest of each answer.
        sums: Sum of every number in :data:`AVERAGED`.
        unpruned_samples: How many samples kept all of their visual tokens.
    """

    method: str
    budget: str
    seed: int | None
    positions: array[int] = field(default_factory=lambda: array("q"))
    scores: array[float] = field(default_factory=lambda: array("d"))
    averages: array[float] = field(default_factory=lambda: array("d"))
    divergences: array[float] = field(default_factory=lambda: array("d"))
    answer_digests: array[int] = field(default_factory=lambda: array("Q"))
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(AVERAGED, 0))
    unpruned_samples: int = 0

    def __len__(self) -> int:
        return len(self.positions)

    def digests(self) -> Iterator[tuple[int, int]]:
        """Position and digest of each answer."""
        return zip(self.positions, self.answer_digests, strict=True)

    def add(self, row: Row) -> None:
        """Take up a row."""
        self.positions.append(row["position"])
        self.scores.append(row["score"])
        self.averages.append(row["layer_average"])
        self.unpruned_samples += row["visual_after"] == row["visual_before"]
        self.answer_digests.append(digest(row["prediction"]))
        if "divergence" in row:
            self.divergences.append(math.nan if row["divergence"] is None else row["divergence"])
        for name in AVERAGED:
            value = row[name]
            self.sums[name] += math.nan if value is None else value  # integers: the sum is exact


def digest(text: str) -> int:
    """64 bits that tell texts apart."""
    return int.from_bytes(blake2b(well_formed(text).strip().encode(), digest_size=8).digest())


@dataclass
class Answers:
    """All answers of an experiment.

    Attributes:
        questions: The questions.
        series: The answers by series key.
    """

    questions: Questions = field(default_factory=Questions)
    series: dict[str, SeriesAnswers] = field(default_factory=dict)

    @classmethod
    def read(cls, rows: Iterable[Row], keys: Iterable[str] | None = None) -> Answers:
        """Read rows one by one.

        Args:
            rows: The rows.
            keys: The series to read; all by default.
        """
        made, wanted = cls(), None if keys is None else set(keys)
        for row in rows:
            if wanted is None or row["series"] in wanted:
                made.questions.add(row)
                fresh = SeriesAnswers(row["method"], row["budget"] or "", row["seed"])
                made.series.setdefault(row["series"], fresh).add(row)
        return made

    @property
    def keys(self) -> set[str]:
        """The series keys."""
        return set(self.series)

    @property
    def unpruned(self) -> MethodAnswers:
        """The answers of the unpruned model."""
        return self.of(UNPRUNED, "")

    def of(self, method: str, budget: str) -> MethodAnswers:
        """The answers of a method with a budget: all its seeds."""
        return MethodAnswers(
            self, [item for item in self.series.values() if item.method == method and item.budget == budget]
        )

    def hard_questions(self, budget: str) -> set[int] | None:
        """Positions of the questions that the unpruned model answers right, and smaller pictures of a budget wrong.

        On the others nothing shows whether a method keeps the right tokens: a smaller picture does as well, or the
        model cannot answer them at all ("Are We Using the Right Benchmark", arXiv 2510.07143).

        Args:
            budget: The budget in a few words.

        Returns:
            None where the model was not shown smaller pictures with that budget.
        """
        smaller = self.of(DOWNSAMPLED, budget)
        if not len(smaller):
            return None
        whole = self.unpruned.by_question()
        return {at for at, score in smaller.by_question().items() if score < RIGHT <= whole.get(at, 0.0)}

    def methods(self) -> Iterator[tuple[str, str]]:
        """Every method with each of its budgets, in the order of the rows."""
        return iter(dict.fromkeys((item.method, item.budget) for item in self.series.values()))


@dataclass(frozen=True)
class MethodAnswers:
    """The answers of one method with one budget, averaged over its seeds.

    Attributes:
        answers: All answers of the experiment.
        seeds: The answers per seed.
    """

    answers: Answers
    seeds: list[SeriesAnswers]

    def __len__(self) -> int:
        return sum(map(len, self.seeds))

    @property
    def unpruned_samples(self) -> int:
        """Number of samples that kept all of their visual tokens."""
        return sum(item.unpruned_samples for item in self.seeds)

    def by_question(self) -> dict[int, float]:
        """Position -> mean score over the seeds."""
        return self._by_question(lambda item: item.scores)

    def agreement_by_question(self) -> dict[int, float]:
        """Position -> share of the seeds that give the unpruned model's answer, where that model has answered."""
        reference = {at: said for item in self.answers.unpruned.seeds for at, said in item.digests()}
        found = self._by_question(lambda item: [float(reference.get(at) == said) for at, said in item.digests()])
        return {position: share for position, share in found.items() if position in reference}

    def _by_question(self, values: Callable[[SeriesAnswers], Iterable[float]]) -> dict[int, float]:
        found: dict[int, list[float]] = {}
        for item in self.seeds:
            for position, value in zip(item.positions, values(item), strict=False):
                found.setdefault(position, []).append(value)
        return {position: math.fsum(several) / len(several) for position, several in found.items()}

    def share(self, values: dict[int, float]) -> Estimate:
        """Mean of one share per question, with an interval clustered by image."""
        groups = self.answers.questions.groups
        return clustered.share(list(values.values()), [groups[position] for position in values])

    def accuracy(self) -> Estimate:
        """Mean score with its interval."""
        return self.share(self.by_question())

    def divergence(self) -> Estimate | None:
        """Mean divergence with an interval clustered by image; None if it was not measured."""
        values = self._by_question(lambda item: item.divergences)
        groups = self.answers.questions.groups
        return clustered.mean(list(values.values()), [groups[position] for position in values]) if values else None

    def mean(self, name: str) -> float:
        """Mean of a number of :data:`AVERAGED` over all answers; NaN if one is unknown."""
        return sum(item.sums[name] for item in self.seeds) / len(self)

    def layer_average(self) -> float:
        """Mean layer average over all answers."""
        return math.fsum(value for item in self.seeds for value in item.averages) / len(self)

    def accuracy_of_type(self, kind: str) -> float:
        """Mean score over the questions of one type; NaN without any."""
        types = self.answers.questions.types
        scores = [
            score
            for item in self.seeds
            for position, score in zip(item.positions, item.scores, strict=True)
            if types[position] == kind
        ]
        return math.fsum(scores) / len(scores) if scores else math.nan


def difference(first: dict[int, float], second: dict[int, float], groups: dict[int, str]) -> Estimate:
    """Mean of the first minus the second, on the questions that both have.

    Args:
        first: One number per question, by position.
        second: Those numbers of another method.
        groups: The image of each question, that intervals are clustered by.
    """
    both = [position for position in first if position in second]
    return clustered.difference([first[at] - second[at] for at in both], [groups[at] for at in both])
