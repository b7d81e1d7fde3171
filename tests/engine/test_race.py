"""Races between methods on a model whose best method is planted."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

import tokenprune as tp
from tests.support.simple import pair
from tokenprune.adapters import adapter_for
from tokenprune.engine.trials.fidelity import Fidelity, UnprunedBatch
from tokenprune.engine.trials.race import Bench, Objective, Race, RaceRules, loss, run_race


def method(layer: int, scorer: dict[str, Any], ratio: float = 0.5) -> tp.Method:
    return tp.Method(
        layers={"name": "fixed", "layers": [layer]},
        pruner={"name": "topk", "scorer": scorer},
        budget={"name": "keep_ratio", "ratio": ratio},
    )


def pictures(count: int) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """The tiny model, and batches of different pictures."""
    model, inputs = pair(batch=2, padding="none")
    noise = torch.Generator().manual_seed(0)
    shape = inputs["pixel_values"].shape
    return model, [{**inputs, "pixel_values": torch.randn(shape, generator=noise)} for _ in range(count)]


class Log:
    """Keeps everything in memory."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], Fidelity] = {}
        self.reads = 0

    def read(self, name: str, batch: int) -> Fidelity | None:
        found = self.rows.get((name, batch))
        self.reads += found is not None
        return found

    def write(self, name: str, batch: int, fidelity: Fidelity) -> None:
        self.rows[name, batch] = fidelity


METHODS = {
    "everything": method(1, {"name": "random"}, 1.0),
    "random": method(1, {"name": "random"}, 0.2),
    "entropy": method(2, {"name": "matrix_entropy"}, 0.2),
}


def race(rules: RaceRules | None = None, log: Log | None = None, batches: int = 8, **more: Any) -> Race:
    model, inputs = pictures(batches)
    return run_race(
        Bench(adapter_for(model), inputs), METHODS | more, rules or RaceRules("divergence", first=4), log=log
    )


def test_a_method_that_drops_nothing_wins() -> None:
    """The others are clearly worse; who left saw fewer samples, in the same order."""
    found = race()
    assert found.samples == 16
    assert "everything" not in found.left
    assert set(found.left) == {"random", "entropy"}
    assert loss(found.fidelity["everything"], "divergence").sum() < 1e-9
    for name, samples in found.left.items():
        assert len(found.fidelity[name]) == samples in (4, 8)
    assert len(found.fidelity["everything"]) == 16


def test_the_numbers_are_those_of_single_batches() -> None:
    model, inputs = pictures(2)
    found = run_race(Bench(adapter_for(model), inputs), METHODS, RaceRules(first=100))
    for name, one in METHODS.items():
        parts = [
            UnprunedBatch(adapter_for(model), batch, sample_ids=[2 * number, 2 * number + 1]).fidelity(
                one, one.layers.layers
            )
            for number, batch in enumerate(inputs)
        ]
        assert Fidelity.cat(parts).to_lists() == found.fidelity[name].to_lists()


def test_an_interrupted_race_goes_on() -> None:
    """What the log holds is not measured again, and the outcome is the same."""
    log = Log()
    whole = race(log=log)
    first = dict(list(log.rows.items())[:7])
    again = Log()
    again.rows = dict(first)
    resumed = race(log=again)
    assert again.reads == 7
    assert again.rows.keys() == log.rows.keys()
    assert resumed.left == whole.left
    for name, fidelity in whole.fidelity.items():
        assert fidelity.to_lists() == resumed.fidelity[name].to_lists()


def test_who_cannot_run_is_refused_by_name() -> None:
    """A layer that does not exist before anything runs; a budget that cannot be met when it is asked for."""
    late = method(99, {"name": "random"})
    poor = tp.Method(
        layers={"name": "fixed", "layers": [3]},
        pruner={"name": "topk", "scorer": {"name": "random"}},
        budget={"name": "layer_average", "ratio": 0.01},
    )
    found = race(late=late, poor=poor)
    assert set(found.refused) == {"late", "poor"}
    assert "layer 99 is out of range" in found.refused["late"]
    assert "layer average" in found.refused["poor"]
    assert set(found.fidelity) == set(METHODS)


@pytest.mark.parametrize(("samples", "expected"), [(64, [8, 16, 32]), (65, [8, 16, 32, 64]), (8, []), (3, [])])
def test_when_methods_may_leave(samples: int, expected: list[int]) -> None:
    assert RaceRules().tests(samples) == expected


def test_losses() -> None:
    fidelity = Fidelity(*(torch.tensor([value]) for value in (0.75, 0.5, 0.1, 3.0, 0.2)))
    found = [round(float(loss(fidelity, name)), 6) for name in get_args(Objective)]
    assert found == [0.707107, 0.25, 0.5, 0.1]


@torch.no_grad()
def test_batches_of_several_sizes() -> None:
    """All samples count, also where the first batch is smaller because some of its own could not be used."""
    model, inputs = pictures(4)
    single = {name: value[:1] for name, value in inputs[0].items()}
    found = run_race(Bench(adapter_for(model), [single, *inputs[1:]]), METHODS, RaceRules("divergence", first=4))
    assert found.samples == 7
    assert found.left == {"random": 5, "entropy": 5}


def test_after_the_last_sample_nobody_leaves() -> None:
    """Also if a test falls into the last batch: leaving would save nothing."""
    assert RaceRules(first=15).tests(16) == [15]
    assert not race(RaceRules("divergence", first=15)).left


def test_the_error_is_divided_among_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[float] = []

    def nobody(losses: torch.Tensor, level: float) -> torch.Tensor:
        levels.append(level)
        return torch.zeros(len(losses), dtype=torch.bool)

    monkeypatch.setattr("tokenprune.engine.trials.race.clearly_worse", nobody)
    race(RaceRules("divergence", error=0.06, first=3))
    assert levels == pytest.approx([0.06 / 3] * 3)  # after 3, 6 and 12 of 16 samples


class Planted:
    """A log that holds a whole race: divergences as they are, most of them small; the first method is a bit better.

    Args:
        seed: Seed of the numbers.
        names: The methods.
    """

    def __init__(self, seed: int, names: list[str]) -> None:
        generator = torch.Generator().manual_seed(seed)
        hard = torch.rand(1, 64, generator=generator)  # samples that are hard are so for all methods
        losses = hard * torch.rand(len(names), 64, generator=generator).log().neg() ** 2
        losses[1:] += torch.linspace(0.01, 1, len(names) - 1)[:, None]
        self.losses = dict(zip(names, losses, strict=True))

    def read(self, name: str, batch: int) -> Fidelity:
        loss = self.losses[name][8 * batch : 8 * batch + 8]
        return Fidelity(1 - loss.clamp(max=1), loss, loss.clamp(max=1), torch.ones_like(loss), torch.ones_like(loss))

    def write(self, name: str, batch: int, fidelity: Fidelity) -> None:
        raise AssertionError("everything was read")


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["root_divergence", "divergence"])
def test_the_planted_winner_rarely_leaves(objective: Any) -> None:
    """200 races of 20 methods: at most the stated share, and three standard errors; the worst leave in nearly all."""
    model, _ = pictures(1)
    adapter = adapter_for(model)
    batches = [{"input_ids": torch.zeros(8, 1, dtype=torch.long)}] * 8
    methods = {f"m{number}": METHODS["random"] for number in range(20)}
    rules = RaceRules(objective)
    races = [run_race(Bench(adapter, batches), methods, rules, log=Planted(seed, list(methods))) for seed in range(200)]
    lost = sum("m0" in found.left for found in races) / len(races)
    assert lost <= rules.error + 3 * (rules.error * (1 - rules.error) / len(races)) ** 0.5
    assert sum("m19" in found.left for found in races) / len(races) > 0.9
    assert all(set(found.left) < set(methods) for found in races)
