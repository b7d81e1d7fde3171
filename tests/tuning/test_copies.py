"""Copies of a sample say nothing new, and a race in which nothing differs has no winner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tests.support.tiny import CASES, CORE
from tests.support.toy import ToyTask
from tests.tuning.planted import BUDGET, Place, config, method, planted
from tokenprune.adapters import adapter_for
from tokenprune.cli.tables import print_tune
from tokenprune.engine.trials.calibrate import compare_trials
from tokenprune.engine.trials.distinct import distinct
from tokenprune.errors import BudgetError, ConfigError
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.norm import Norm
from tokenprune.selectors.base import Trial
from tokenprune.tasks.base import Sample
from tokenprune.tuning import TuneResult, run_tune
from tokenprune.tuning.folder import read_tune

Inputs = dict[str, Tensor]


def joined(batches: list[Inputs]) -> Inputs:
    return {name: torch.cat([inputs[name] for inputs in batches]) for name in batches[0]}


def numbers(result: TuneResult) -> list[Any]:
    return [(row.name, row.loss, row.agreement, row.seen) for row in result.ranked]


# ---- copies ----


@pytest.mark.parametrize("name", CORE)
def test_copies_are_found_in_every_family(name: str) -> None:
    model: Any = CASES[name].build()
    adapter = adapter_for(model)
    first, second = (CASES[name].batch(model, 2, "left", seed=seed).inputs for seed in (0, 1))
    size = len(first["input_ids"])
    assert distinct(adapter, [first, second, first]) == [list(range(size)), list(range(size)), []]
    pixels = next(key for key in first if key.startswith("pixel_values"))
    other = {**first, pixels: first[pixels] + 1}
    assert distinct(adapter, [first, other])[1], "other pictures are other samples"


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_copies_are_found_inside_a_batch_and_under_other_padding(name: str) -> None:
    model: Any = CASES[name].build()
    adapter = adapter_for(model)
    inputs = CASES[name].batch(model, 2, "none").inputs
    assert distinct(adapter, [joined([inputs, inputs])]) == [[0, 1]]
    pad = {"input_ids": 0, "attention_mask": 0, "mm_token_type_ids": 0}
    padded = {
        key: torch.nn.functional.pad(value, (3, 0), value=pad[key]) if key in pad else value
        for key, value in inputs.items()
    }
    padded.setdefault("attention_mask", torch.nn.functional.pad(torch.ones_like(inputs["input_ids"]), (3, 0)))
    assert distinct(adapter, [inputs, padded]) == [[0, 1], []]
    swapped = {**inputs, "input_ids": inputs["input_ids"].clone()}
    swapped["input_ids"][1, -1] += 1  # another question about the same picture
    assert distinct(adapter, [inputs, swapped]) == [[0, 1], [1]]


def test_what_cannot_be_divided_is_never_taken_for_a_copy() -> None:
    model: Any = CASES["llava"].build()
    inputs = CASES["llava"].batch(model, 2, "none").inputs
    twins = joined([{key: value[:1] for key, value in inputs.items()}] * 2)
    assert distinct(adapter_for(model), [twins]) == [[0]]
    strange = {**twins, "extra": torch.zeros(7)}
    assert distinct(adapter_for(model), [strange]) == [[0, 1]]
    assert distinct(adapter_for(model), [strange, strange]) == [[0, 1], []]


@pytest.mark.usefixtures("place_installed")
@pytest.mark.parametrize("shape", ["batches", "inside", "between"])
def test_copies_count_once(shape: str, tmp_path: Path) -> None:
    """Every figure is that of a tune without the copies, intervals among them."""
    model, samples = planted(8)
    named = [method(Place(keep="matter"), "planted"), method(Place(), "opposite")]
    alone = tp.tune(model, samples, BUDGET, named, first=2)
    copied = {
        "batches": [*samples, *samples],
        "inside": [joined([inputs, inputs]) for inputs in samples],
        "between": [samples[0], samples[0], *samples[1:], samples[2]],
    }[shape]
    output = tmp_path if shape == "inside" else None
    for _ in range(1 if output is None else 2):  # the second time its rows are read
        result = tp.tune(model, copied, BUDGET, named, first=2, output=output)
        assert [row[0] for row in numbers(result)] == [row[0] for row in numbers(alone)]
        for ours, theirs in zip(result.ranked, alone.ranked, strict=True):
            assert ours.seen == theirs.seen
            assert ours.losses.numpy() == pytest.approx(theirs.losses.numpy(), abs=1e-5)
            assert ours.loss.high - ours.loss.low == pytest.approx(theirs.loss.high - theirs.loss.low, abs=1e-5)
    given = sum(len(inputs["input_ids"]) for inputs in copied)
    line = f"{given - 8} of the {given} given samples are copies of others; each sample was counted once."
    assert line in str(result)
    assert "copies" not in str(alone)
    if output is not None:
        assert line in (output / "report.md").read_text()
        assert read_tune(output).setup.copies == given - 8


class Copied(ToyTask):
    """Two pictures and questions, over and over, under other names."""

    def calibration(self, count: int) -> list[Sample]:
        two = super().calibration(2)
        return [replace(two[number % 2], id=f"c{number}", group=f"g{number}") for number in range(count)]


@pytest.mark.slow
def test_copies_in_the_data_of_a_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_tune(config(str(tmp_path), task=Copied(), methods=["fastv"], batch_size=3, samples=8, first=2))
    assert result.rankings[0].samples == 2
    print_tune(result)
    assert "6 of the 8 given samples are copies of others" in " ".join(capsys.readouterr().out.split())


def test_copies_of_one_sample_say_nothing() -> None:
    model, samples = planted(4)
    one = {name: value[:1] for name, value in samples[0].items()}
    with pytest.raises(ConfigError, match="all 5 samples are copies of one, and 1 sample says nothing about others"):
        tp.tune(model, [one] * 5, BUDGET, ["fastv"])


def test_a_selector_that_compares_answers_counts_copies_once() -> None:
    model, samples = planted(4)
    made = method(Norm(), "norm")
    trials = [Trial(layers=(1,), pruner=TopK(scorer=Norm()))]
    (found,) = compare_trials(adapter_for(model), made, [*samples, *samples], trials)
    assert len(found.agreement) == 4


# ---- nothing to choose between ----


@pytest.mark.parametrize(
    "budget",
    [{"name": "layer_average", "ratio": 1.0}, {"name": "layer_average", "tokens": 16}],
)
@pytest.mark.parametrize("output", [False, True])
def test_a_budget_that_drops_nothing_has_no_winner(budget: dict[str, Any], output: bool, tmp_path: Path) -> None:
    model, samples = planted(4)
    folder = tmp_path / "out" if output else None
    with pytest.raises(
        BudgetError, match="nothing is dropped, so all candidates are equal and there is no winner; ask"
    ):
        tp.tune(model, samples, budget, [method(Place(), "mine"), "fastv"], output=folder)
    assert not (tmp_path / "out" / "tuned.yaml").exists()


def test_nothing_dropped_is_found_after_the_race_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the budget is found by measuring the time, it is known for each candidate only."""
    monkeypatch.setattr("tokenprune.tuning.equal_time._search", lambda *args: 1.0)
    model, samples = planted(4)
    with pytest.raises(BudgetError, match=r"budget 'prefill_time 0\.99': nothing is dropped"):
        tp.tune(model, samples, {"name": "prefill_time", "ratio": 0.99}, ["fastv"])


@pytest.mark.slow
@pytest.mark.usefixtures("place_installed")
def test_equal_candidates_do_not_crown_random(tmp_path: Path) -> None:
    """No visual token matters: all answers are the same, whatever is dropped."""
    model, samples = planted(4)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    result = tp.tune(model, samples, BUDGET, [method(Place(), "mine")], first=2, output=tmp_path)
    assert not result.best.random
    assert not result.beats_random
    assert result.sentence.startswith("no winner: the 3 candidates that saw all samples are equal on each of them")
    assert "No winner: the 3 candidates" in " ".join((tmp_path / "tuned.yaml").read_text().split())
    assert "No winner" in (tmp_path / "report.md").read_text()
    assert read_tune(tmp_path).sentence == result.sentence


def test_equal_candidates_that_differ_from_random_have_a_winner() -> None:
    model, samples = planted(16)
    same = [method(Place(keep="matter"), "one"), method(Place(keep="matter"), "two", positions="original")]
    result = tp.tune(model, samples, BUDGET, same)
    assert not result.sentence.startswith("no winner")
    assert result.beats_random
