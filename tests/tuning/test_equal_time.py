"""Equal measured time, with a clock that is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tokenprune as tp
from tests.tuning.planted import Place, method, planted
from tokenprune.adapters import adapter_for
from tokenprune.budgets.layer_average import LayerAverage
from tokenprune.selectors.base import LayerSelector
from tokenprune.selectors.entropy_collapse import EntropyCollapse
from tokenprune.selectors.fixed import Fixed
from tokenprune.selectors.vtw import Vtw
from tokenprune.tuning.budgets import PrefillTime
from tokenprune.tuning.candidate_maker import Candidate
from tokenprune.tuning.equal_time import NEAR, ROUNDS, STEPS, equal_time, prefill_clock


class FakeClock:
    """A prefill takes a fixed part, and the rest grows with the layer average; the machine gets slower all the time."""

    def __init__(self, fixed: float) -> None:
        self.fixed, self.calls, self.slower = fixed, 0, 1.0

    def __call__(self, one: tp.Method | None) -> float:
        self.calls += 1
        self.slower *= 1.001
        ratio = 1.0 if one is None else one.budget.ratio  # type: ignore[attr-defined]
        return self.slower * (self.fixed + (1 - self.fixed) * ratio)


def candidate(layer: int, name: str = "a") -> Candidate:
    return Candidate(name, method(Place(), name, layer=layer), "named")


def fit(clock: FakeClock, wanted: float, *candidates: Candidate, **known: float) -> Any:
    return equal_time(candidates, PrefillTime(ratio=wanted), visual=16, num_layers=4, clock=clock, known=known)


def test_the_layer_average_that_takes_the_wanted_time_is_found() -> None:
    (found,), refused = fit(FakeClock(0.2), 0.6, candidate(0))
    assert not refused
    budget = found.method.budget
    assert isinstance(budget, LayerAverage)
    assert budget.ratio is not None
    assert 0.2 + 0.8 * budget.ratio == pytest.approx(0.6, abs=2 * NEAR)


def test_the_search_is_short() -> None:
    clock = FakeClock(0.2)
    fit(clock, 0.5555, candidate(0))
    assert clock.calls <= 1 + 2 * ROUNDS * (1 + STEPS)


def test_what_cannot_be_so_fast_is_refused() -> None:
    found, refused = fit(FakeClock(0.2), 0.3, candidate(0, "early"), candidate(3, "late"))
    assert [item.name for item in found] == ["early"]
    assert "its prefill takes 0.8" in refused["late"]
    assert "even with one visual token per sample, which is more than 0.3" in refused["late"]


def test_what_was_found_is_not_measured_again() -> None:
    clock = FakeClock(0.2)
    (found,), _ = fit(clock, 0.6, candidate(0), a=0.25)
    assert found.method.budget == LayerAverage(ratio=0.25)
    assert clock.calls == 1  # the one that warms up


def test_several_stages_start_at_what_they_can_reach() -> None:
    staged = method(Place(), "a").model_copy(update={"layers": Fixed(layers=(0, 1, 2))})
    (found,), _ = fit(FakeClock(0.0), 0.5, Candidate("a", staged, "named"))
    budget = found.method.budget
    assert isinstance(budget, LayerAverage)
    assert budget.ratio == pytest.approx(0.5, abs=2 * NEAR)


@pytest.mark.slow
def test_a_tune_at_equal_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measured shares are kept in the folder: a second call compares the same methods."""
    monkeypatch.setattr("tokenprune.tuning.measuring.prefill_clock", lambda adapter, inputs: FakeClock(0.1))
    model, samples = planted(8)
    named = [method(Place(keep="matter"), "planted"), method(Place(), "late", layer=3)]
    budget = {"name": "prefill_time", "ratio": 0.6}
    result = tp.tune(model, samples, budget, named, output=tmp_path)
    assert result.rankings[0].budget == "prefill_time 0.6"
    assert "late" in result.refused
    assert result.best.name == "planted"
    monkeypatch.setattr("tokenprune.tuning.measuring.prefill_clock", lambda adapter, inputs: FakeClock(0.4))
    again = tp.tune(model, samples, budget, named[:1], output=tmp_path)
    assert again.best.method == result.best.method


def test_a_prefill_on_the_model_takes_time() -> None:
    model, samples = planted(4)
    clock = prefill_clock(adapter_for(model), samples[0])
    assert clock(None) > 0
    assert clock(method(Place(), "a")) > 0


@pytest.mark.parametrize("selector", [EntropyCollapse(verify=True, fallback=1), Vtw(start=1)], ids=["verified", "vtw"])
def test_layers_that_depend_on_the_budget_are_refused(selector: LayerSelector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows the budget before the time was measured; without this, layers were verified with nothing dropped."""
    monkeypatch.setattr("tokenprune.tuning.measuring.prefill_clock", lambda adapter, inputs: FakeClock(0.1))
    model, samples = planted(4)
    searching = method(Place(), "searching").model_copy(update={"layers": selector})
    budget = {"name": "prefill_time", "ratio": 0.6}
    result = tp.tune(model, samples, budget, [searching, method(Place(keep="matter"), "fixed")], first=2)
    assert "its selector tries the method out at a budget" in result.refused["searching"]
    assert result.best.name == "fixed"
