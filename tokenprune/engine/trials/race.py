"""Races between methods: all run on few samples, the clearly worse leave, the others see more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass
class Race:
    """A race's outcome.

    Attributes:
        fidelity: Per method, its samples in the order of the batches: all, or those that it saw before it left.
        left: Per method that left, the number of samples that it had seen.
        refused: Per method that cannot run, the reason.
        samples: Samples of the whole race.
    """

    fidelity: dict[str, Fidelity] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    samples: int = 0


#: Called after every method and batch with (method, batches done, batches in total).
Progress = Callable[[str, int, int], None]


def run_race(
    adapter: Adapter,
    batches: Sequence[Mapping[str, Any]],
    methods: Mapping[str, Method],
    rules: RaceRules,
    *,
    log: RaceLog | None = None,
    progress: Progress | None = None,
    answer: Answer | None = None,
    alone: Alone | None = None,
    names: Sequence[Sequence[str]] | None = None,
    counted: Sequence[Sequence[int]] | None = None,
) -> Race:
    """Run methods on batches next to the unpruned model, and let the clearly worse leave.

    Of each batch the unpruned pass, the image features and the layers before the first pruned one are computed once.

    Args:
        adapter: The model's adapter.
        batches: Inputs as for ``model(**inputs)``; read one after the other.
        methods: The methods by name, with ``fixed`` layers.
        rules: The rules.
        log: Where results are read and written.
        progress: Called after every method and batch.
        answer: Answers and scores a batch; needed where the goal is the score.
        alone: Makes the inputs of the samples of a batch alone: where the batch fails, they are measured one by one.
        names: Names of the samples of each batch in errors; None for their numbers, from 0.
        counted: The places of each batch whose samples count; None for all. See
            :func:`tokenprune.engine.trials.distinct.distinct`.

    Raises:
        UnsupportedFeatureError: The unpruned model's logits of a sample hold NaN.
        ForwardError: The unpruned model fails, or the device does.
    """
    race = Race()
    layers = {name: fixed_layers(method) for name, method in methods.items()}
    running = []
    for name, method in methods.items():
        try:
            Plan.of(method, layers[name], adapter)
            running.append(name)
        except TokenPruneError as error:
            race.refused[name] = str(error)
    parts: dict[str, list[Fidelity]] = {name: [] for name in running}
    counted = counted or [range(len(inputs["input_ids"])) for inputs in batches]
    total = sum(map(len, counted))
    tests = rules.tests(total)
    level = rules.error / max(1, len(tests))
    for number, inputs in enumerate(batches):
        places = counted[number]
        batch: MeasuredBatch | None = None
        for name in list(running) if places else ():
            found = log.read(name, number) if log is not None else None
            if found is None or len(found) != len(places) or (answer is not None and found.score is None):
                if batch is None:
                    firsts = {layers[other][0] for other in running}
                    ids = _numbers(len(inputs["input_ids"]), places, race.samples)
                    called = None if names is None else names[number]
                    batch = MeasuredBatch(adapter, number, inputs, firsts, rules.tokens, ids, called, answer, alone)
                    batch.prepare()
                try:
                    found = batch.fidelity(methods[name], layers[name]).at(places)
                except TokenPruneError as error:
                    if device_broken(error):
                        raise
                    race.refused[name] = str(error)
                    running.remove(name)
                    continue
                if log is not None:
                    log.write(name, number, found)
            parts[name].append(found)
            if progress is not None:
                progress(name, number, len(batches))
        if not places and progress is not None and running:
            progress(running[-1], number, len(batches))
        del batch  # before the next one is made
        before, race.samples = race.samples, race.samples + len(places)
        if any(before < test <= race.samples for test in tests) and race.samples < total and len(running) > 1:
            losses = torch.stack([loss(Fidelity.cat(parts[name]), rules.goal) for name in running])
            leaving = [name for name, bad in zip(running, clearly_worse(losses, level), strict=True) if bad]
            race.left |= dict.fromkeys(leaving, race.samples)
            running = [name for name in running if name not in race.left]
    race.fidelity = {name: Fidelity.cat(found) for name, found in parts.items() if found and name not in race.refused}
    return race


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
