"""A race by the task's score: every candidate answers the questions, and those that are clearly worse leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenprune.adapters.base import Adapter
from tokenprune.config import Method
from tokenprune.engine.apply import apply
from tokenprune.engine.fidelity import Fidelity, UnprunedBatch
from tokenprune.engine.race import Progress, Race, RaceRules
from tokenprune.engine.reservation import reserved
from tokenprune.errors import TokenPruneError
from tokenprune.ops.race import clearly_worse
from tokenprune.selectors.fixed import Fixed
from tokenprune.tuning.store import BudgetRows

#: Answers a batch with the model as it is, and scores the answers: (number of the batch, its inputs) -> ``[samples]``.
Answer = Callable[[int, Mapping[str, Any]], Tensor]


def run_labelled_race(
    adapter: Adapter,
    batches: Sequence[Mapping[str, Any]],
    methods: Mapping[str, Method],
    rules: RaceRules,
    rows: BudgetRows,
    answer: Answer,
    progress: Progress | None = None,
) -> tuple[Race, dict[str, Tensor]]:
    """Run candidates like :func:`tokenprune.engine.race.run_race`, but compare scores.

    Args:
        adapter: The model's adapter.
        batches: Inputs as for ``model(**inputs)``.
        methods: The methods by name, with ``fixed`` layers.
        rules: The rules; their objective is not used.
        rows: Where results are read and written.
        answer: Answers and scores a batch.
        progress: Called after every method and batch.

    Returns:
        The race, and the score of every sample that a method saw, by name.
    """
    race = Race()
    parts: dict[str, list[Fidelity]] = {name: [] for name in methods}
    scores: dict[str, Tensor] = {name: torch.empty(0) for name in methods}
    layers = {name: _layers(method) for name, method in methods.items()}
    running = list(methods)
    tests = rules.tests(sum(len(inputs["input_ids"]) for inputs in batches))
    for number, inputs in enumerate(batches):
        size = len(inputs["input_ids"])
        unpruned: UnprunedBatch | None = None
        for name in list(running):
            found, score = rows.read(name, number), rows.score(name, number)
            if found is None or score is None:
                ids = range(race.samples, race.samples + size)
                try:
                    with reserved(adapter.decoder):
                        if unpruned is None:
                            firsts = {layers[other][0] for other in running}
                            unpruned = UnprunedBatch(adapter, inputs, firsts, rules.tokens, ids)
                        found = unpruned.fidelity(methods[name], layers[name])
                    with apply(adapter.model, methods[name]) as run:
                        run.annotate(sample_ids=ids)
                        score = answer(number, inputs)
                except TokenPruneError as error:
                    race.refused[name] = str(error)
                    running.remove(name)
                    continue
                rows.write(name, number, found, score)
            parts[name].append(found)
            scores[name] = torch.cat([scores[name], score])
            if progress is not None:
                progress(name, number, len(batches))
        before, race.samples = race.samples, race.samples + size
        if any(before < test <= race.samples for test in tests) and number < len(batches) - 1 and len(running) > 1:
            losses = torch.stack([1 - scores[name] for name in running])
            worse = clearly_worse(losses, rules.error / len(tests)).tolist()
            leaving = [name for name, bad in zip(running, worse, strict=True) if bad]
            race.left |= dict.fromkeys(leaving, race.samples)
            running = [name for name in running if name not in race.left]
    race.fidelity = {name: Fidelity.cat(found) for name, found in parts.items() if found and name not in race.refused}
    return race, {name: scores[name] for name in race.fidelity}


def _layers(method: Method) -> tuple[int, ...]:
    assert isinstance(method.layers, Fixed), "a race compares methods with fixed layers"
    return method.layers.layers
