"""What a tune costs, next to the naive grid: 20 candidates, 64 pictures, the embedded model for pictures.

The naive grid runs the unpruned model and one candidate on each picture, for one candidate after the other. A tune
shares the unpruned pass, the image features and the layers before the first pruned one among the candidates, and lets
the clearly worse leave. The grids are timed on 16 of the 64 pictures, batch by batch in turn, and counted four times;
the race runs on all 64. Memory is the peak of one batch of eight pictures, next to one unpruned prefill of that batch.

    python benchmarks/tuning_cost.py > benchmarks/results/tuning/cost.md
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tokenprune.adapters import adapter_for
from tokenprune.budgets.layer_average import LayerAverage
from tokenprune.config import Method
from tokenprune.engine.trials.calibrate import measure_entropy
from tokenprune.engine.trials.features import SharedFeatures
from tokenprune.engine.trials.fidelity import UnprunedBatch
from tokenprune.engine.trials.race import Bench, RaceRules, fixed_layers, run_race
from tokenprune.measure.memory import peak_bytes
from tokenprune.tuning.candidates import default_candidates
from tokenprune_embedded.models import Digits
from tokenprune_embedded.tasks.digits import Digits as DigitsTask

CANDIDATES, PICTURES, BATCH, TIMED = 20, 64, 8, 16
BUDGET = LayerAverage(ratio=0.2223)

Grid = Callable[[Mapping[str, Tensor]], None]


@contextmanager
def no_sharing() -> Iterator[None]:
    """Image features are computed anew in every pass."""
    with mock.patch.object(SharedFeatures, "enabled", return_value=nullcontext()):
        yield


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    loaded = Digits().load()
    adapter = adapter_for(loaded.model)
    samples = DigitsTask().calibration(PICTURES)
    batches = [loaded.encode(samples[start : start + BATCH]) for start in range(0, PICTURES, BATCH)]
    curves = measure_entropy(loaded.model, batches[:1], cache=False)
    found, _ = default_candidates(adapter, BUDGET, curves=curves, visual=144)
    chosen = found[:: max(1, len(found) // CANDIDATES)][:CANDIDATES]
    methods = {candidate.name: candidate.method for candidate in chosen}
    running = runnable(adapter, batches[0], methods)
    firsts = {fixed_layers(method)[0] for method in running.values()}

    def alone(inputs: Mapping[str, Tensor]) -> None:
        with no_sharing():
            for method in running.values():
                UnprunedBatch(adapter, inputs).fidelity(method, fixed_layers(method))

    def together(shared: bool, reused: bool) -> Grid:
        def grid(inputs: Mapping[str, Tensor]) -> None:
            with nullcontext() if shared else no_sharing():
                unpruned = UnprunedBatch(adapter, inputs, firsts if reused else ())
                for method in running.values():
                    unpruned.fidelity(method, fixed_layers(method))

        return grid

    grids: dict[str, Grid] = {
        "naive grid": alone,
        "the unpruned pass shared": together(shared=False, reused=False),
        "image features shared, too": together(shared=True, reused=False),
        "first layers shared, too": together(shared=True, reused=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in grids}
    for inputs in batches[: TIMED // BATCH]:
        for name, grid in grids.items():
            start = time.process_time()
            grid(inputs)
            seconds[name].append(time.process_time() - start)
    start = time.process_time()
    race = run_race(Bench(adapter, batches), running, RaceRules())
    raced = time.process_time() - start
    report(running, seconds, raced, race, memory(loaded.model, adapter, batches[0], running))


def runnable(adapter: Any, inputs: Mapping[str, Tensor], methods: Mapping[str, Method]) -> dict[str, Method]:
    """The methods that run on the first batch, e.g. not those for videos."""
    small = {name: value[:1] for name, value in inputs.items()}
    race = run_race(Bench(adapter, [small]), methods, RaceRules())
    return {name: method for name, method in methods.items() if name not in race.refused}


def memory(model: Any, adapter: Any, inputs: Mapping[str, Tensor], methods: Mapping[str, Method]) -> float:
    """Peak bytes of a batch with all methods, divided by those of one unpruned prefill."""

    @torch.no_grad()
    def prefill() -> None:
        model(**inputs, use_cache=True, logits_to_keep=1)

    def batch() -> None:
        run_race(Bench(adapter, [inputs]), methods, RaceRules())

    device = torch.device("cpu")
    return peak_bytes(batch, device) / peak_bytes(prefill, device)


def report(
    running: Mapping[str, Method], seconds: Mapping[str, list[float]], raced: float, race: Any, peak: float
) -> None:
    """Print the tables as Markdown."""
    scale = PICTURES // BATCH
    whole = {name: scale * statistics.fmean(values) for name, values in seconds.items()}
    whole["and a race (the tune)"] = raced
    naive = whole["naive grid"]
    print("# What a tune costs\n")
    print(f"{len(running)} candidates, {PICTURES} pictures, layer average {100 * BUDGET.ratio:.1f} %. CPU seconds.\n")
    print("| | seconds | share of the naive grid |\n|---|---|---|")
    for name, value in whole.items():
        print(f"| {name} | {value:.0f} | {value / naive:.2f} |")
    print(f"\nPeak memory of a batch with all candidates: {peak:.2f} times that of one unpruned prefill.\n")
    print(f"{len(race.left)} of {len(running)} candidates left early:\n")
    print("| candidate | samples seen | disagreement | divergence |\n|---|---|---|---|")
    order = sorted(
        race.fidelity, key=lambda name: (-len(race.fidelity[name]), float(race.fidelity[name].divergence.mean()))
    )
    for name in order:
        item = race.fidelity[name]
        print(
            f"| {name} | {len(item)} | {1 - float(item.agreement.mean()):.3f} | {float(item.divergence.mean()):.3f} |"
        )


if __name__ == "__main__":
    main()
