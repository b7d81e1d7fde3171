"""Races between methods: all run on few samples, the clearly worse leave, the others see more."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from tokenprune.adapters.base import Adapter
from tokenprune.config import Method
from tokenprune.core.forward_errors import device_broken
from tokenprune.engine.plan import Plan
from tokenprune.engine.trials.fidelity import Fidelity
from tokenprune.engine.trials.measuring import Alone, Answer, MeasuredBatch
from tokenprune.errors import TokenPruneError
from tokenprune.selectors.fixed import Fixed
from tokenprune.stats.sequential_test import clearly_worse

#: What a race compares: one of the measures of :class:`tokenprune.engine.trials.fidelity.Fidelity`, or
#: ``root_divergence``, the square root of each sample's divergence: one answer that is quite wrong then counts less
#: than many that differ.
Objective = Literal["root_divergence", "agreement", "divergence", "distance"]

#: Objective of a race, or the task's score of generated answers, which needs labels.
Goal = Objective | Literal["score"]


def loss(fidelity: Fidelity, goal: Goal) -> Tensor:
    """Per-sample loss that the race minimises: float32 ``[samples]``, not negative."""
    if goal == "score":
        assert fidelity.score is not None, "a race by the score has answers"
        return 1 - fidelity.score
    if goal == "root_divergence":
        return fidelity.divergence.sqrt()
    value: Tensor = getattr(fidelity, goal)
    return 1 - value if goal == "agreement" else value


class RaceLog(Protocol):
    """Remembers what was measured, so that an interrupted race goes on."""

    def read(self, name: str, batch: int) -> Fidelity | None:
        """Read what was measured of a method on a batch; None if nothing was."""

    def write(self, name: str, batch: int, fidelity: Fidelity) -> None:
        """Remember it."""


@dataclass(frozen=True)
class RaceRules:
    """Settings of a race.

    Attributes:
        goal: The measure that is compared.
        error: Probability that the best method leaves, over the whole race. It is divided equally among the tests.
        first: Samples that all methods see before some may leave. The tests are at this number and its doubles.
        tokens: Tokens of the answer that are compared.
    """

    goal: Goal = "root_divergence"
    error: float = 0.05
    first: int = 8
    tokens: int = 1

    def tests(self, samples: int) -> list[int]:
        """The numbers of samples after which methods may leave; after the last sample nobody does."""
        out, number = [], self.first
        while number < samples:
            out.append(number)
            number *= 2
        return out

    def lacks(self, fidelity: Fidelity) -> bool:
        """Whether what was measured lacks the score that is compared."""
        return self.goal == "score" and fidelity.score is None


@dataclass
class Race:
    """A race's outcome.

    Attributes:
        fidelity: Per method, its samples in the order of the batches: all, or those that it saw before it left.
        left: Per method that left, the number of samples that it had seen.
        refused: Per method that cannot run, the reason.
        failed: Per method that failed on a batch, the number of the first such batch.
        samples: Samples of the whole race.
    """

    fidelity: dict[str, Fidelity] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    samples: int = 0


#: Called after every method and batch with (method, batches done, batches in total).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class AskedBatch:
    """Methods that are to be measured on a batch.

    Attributes:
        number: Number of the batch.
        keys: The names of the methods.
        first: The number of the first of its samples that count, on which random scores depend.
    """

    number: int
    keys: tuple[str, ...]
    first: int


@dataclass(frozen=True)
class MeasuredOne:
    """What a method does to a batch: numbers, or the error with which it fails."""

    number: int
    key: str
    found: Fidelity | TokenPruneError


#: Measures what is asked for. It reads the next batch when it has measured one: by then a method may have failed.
Measure = Callable[[Iterable[AskedBatch], int], Iterable[Sequence[MeasuredOne]]]


@dataclass(frozen=True)
class Bench:
    """Where methods are measured: a model, and the batches.

    Attributes:
        adapter: The model's adapter.
        batches: Inputs as for ``model(**inputs)``; read one after the other.
        tokens: Tokens of the answer that are compared.
        answer: Answers and scores a batch; needed where the goal is the score.
        alone: Makes the inputs of the samples of a batch alone: where the batch fails, they are measured one by one.
        names: Names of the samples of each batch in errors; None for their numbers, from 0.
    """

    adapter: Adapter
    batches: Sequence[Mapping[str, Any]]
    tokens: int = 1
    answer: Answer | None = None
    alone: Alone | None = None
    names: Sequence[Sequence[str]] | None = None

    def refused(self, methods: Mapping[str, Method]) -> dict[str, str]:
        """The methods that cannot run on the model, and why; nothing runs."""
        found = {}
        for name, method in methods.items():
            try:
                Plan.of(method, fixed_layers(method), self.adapter)
            except TokenPruneError as error:
                found[name] = str(error)
        return found

    def measure(self, asked: AskedBatch, methods: Mapping[str, Method], places: Sequence[int]) -> Iterator[MeasuredOne]:
        """Run methods on a batch next to the unpruned model.

        The unpruned pass, the image features and the layers before the first pruned one are computed once.

        Args:
            asked: The batch, and the names of the methods.
            methods: The methods by name, with ``fixed`` layers.
            places: The places of the batch whose samples count.

        Raises:
            UnsupportedFeatureError: The unpruned model's logits of a sample hold NaN.
            ForwardError: The unpruned model fails, or the device does.
        """
        number, inputs = asked.number, self.batches[asked.number]
        firsts = {fixed_layers(methods[name])[0] for name in asked.keys}
        ids = _numbers(len(inputs["input_ids"]), places, asked.first)
        called = None if self.names is None else self.names[number]
        batch = MeasuredBatch(self.adapter, number, inputs, firsts, self.tokens, ids, called, self.answer, self.alone)
        batch.prepare()
        for name in asked.keys:
            found: Fidelity | TokenPruneError
            try:
                found = batch.fidelity(methods[name], fixed_layers(methods[name])).at(places)
            except TokenPruneError as error:
                if device_broken(error):
                    raise
                found = error
            yield MeasuredOne(number, name, found)


def run_race(
    bench: Bench,
    methods: Mapping[str, Method],
    rules: RaceRules,
    *,
    log: RaceLog | None = None,
    progress: Progress | None = None,
    counted: Sequence[Sequence[int]] | None = None,
) -> Race:
    """Run methods on batches next to the unpruned model, and let the clearly worse leave.

    Args:
        bench: The model and the batches.
        methods: The methods by name, with ``fixed`` layers.
        rules: The rules.
        log: Where results are read and written.
        progress: Called after every method and batch.
        counted: The places of each batch whose samples count; None for all. See
            :func:`tokenprune.engine.trials.distinct.distinct`.

    Raises:
        TokenPruneError: As for :meth:`Bench.measure`.
    """
    places = counted or [range(len(inputs["input_ids"])) for inputs in bench.batches]

    def measure(asked: Iterable[AskedBatch], count: int) -> Iterator[Sequence[MeasuredOne]]:
        for item in asked:
            for found in bench.measure(item, methods, places[item.number]):
                yield [found]

    refused = bench.refused(methods)
    race = judge([name for name in methods if name not in refused], rules, places, measure, log, progress)
    race.refused = refused | race.refused
    return race


def judge(
    names: Sequence[str],
    rules: RaceRules,
    counted: Sequence[Sequence[int]],
    measure: Measure,
    log: RaceLog | None = None,
    progress: Progress | None = None,
) -> Race:
    """Let methods be measured, and the clearly worse leave.

    Args:
        names: The methods.
        rules: The rules.
        counted: The places of each batch whose samples count.
        measure: Measures the methods, in any order within the batches between two tests; its errors are raised.
        log: Where results are read and written.
        progress: Called after every method and batch.
    """
    race, running = Race(samples=sum(map(len, counted))), list(names)
    parts: dict[str, dict[int, Fidelity]] = {name: {} for name in names}
    starts = [0, *accumulate(map(len, counted))]
    tests = rules.tests(race.samples)
    level = rules.error / max(1, len(tests))

    def take(name: str, number: int, found: Fidelity | TokenPruneError) -> None:
        if isinstance(found, Fidelity):
            parts[name][number] = found
        elif number < race.failed.get(name, len(counted)):
            race.failed[name], race.refused[name] = number, str(found)
            running[:] = [other for other in running if other != name]
        if progress is not None:
            progress(name, number, len(counted))

    def asked(numbers: Sequence[int]) -> Iterator[AskedBatch]:
        for number in numbers:
            missing = []
            for name in list(running) if counted[number] else ():
                found = log.read(name, number) if log is not None else None
                if found is None or len(found) != len(counted[number]) or rules.lacks(found):
                    missing.append(name)
                else:
                    take(name, number, found)
            if missing:
                yield AskedBatch(number, tuple(missing), starts[number])
            elif progress is not None and running and not counted[number]:
                progress(running[-1], number, len(counted))

    for numbers, last in _rounds(starts, tests):
        for arrived in measure(asked(numbers), len(numbers)):
            for item in arrived:
                if log is not None and isinstance(item.found, Fidelity):
                    log.write(item.key, item.number, item.found)
                take(item.key, item.number, item.found)
        if not last and len(running) > 1:
            losses = torch.stack([loss(_joined(parts[name]), rules.goal) for name in running])
            leaving = [name for name, bad in zip(running, clearly_worse(losses, level), strict=True) if bad]
            race.left |= dict.fromkeys(leaving, starts[numbers[-1] + 1])
            running = [name for name in running if name not in race.left]
    race.fidelity = {name: _joined(found) for name, found in parts.items() if found and name not in race.refused}
    return race


def _rounds(starts: Sequence[int], tests: Sequence[int]) -> Iterator[tuple[list[int], bool]]:
    """The numbers of the batches up to each test, and whether they are the last.

    Args:
        starts: Samples before each batch, and all of them.
        tests: The numbers of samples after which there are tests.
    """
    numbers: list[int] = []
    for number, (before, after) in enumerate(pairwise(starts)):
        numbers.append(number)
        if after < starts[-1] and any(before < test <= after for test in tests):
            yield numbers, False
            numbers = []
    yield numbers, True


def _joined(found: Mapping[int, Fidelity]) -> Fidelity:
    """The samples of a method in the order of the batches."""
    return Fidelity.cat([found[number] for number in sorted(found)])


def _numbers(size: int, places: Sequence[int], first: int) -> list[int]:
    """The number of every sample of a batch, on which random scores depend: those that count follow each other.

    Args:
        size: Samples of the batch.
        places: The places of those that count.
        first: The number of the first of these.
    """
    numbers = {place: number for number, place in enumerate(places, first)}
    return [numbers.get(place, first) for place in range(size)]


def fixed_layers(method: Method) -> tuple[int, ...]:
    """The layers of a method whose selector is ``fixed``: methods that are compared have no other."""
    assert isinstance(method.layers, Fixed), "a race compares methods with fixed layers"
    return method.layers.layers
