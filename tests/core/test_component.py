"""Components made directly: one kind of error, strict numbers, one message per mistake."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest

import tokenprune as tp
from tokenprune.budgets.keep import Adaptive, KeepCount, KeepRatio, KeepSchedule
from tokenprune.errors import ConfigError
from tokenprune.experiment.config import MethodEntry
from tokenprune.pruners.topk import TopK
from tokenprune.scorers.norm import Norm
from tokenprune.scorers.random import Random
from tokenprune.selectors.fixed import Fixed


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tp.Method(layers="fixed", pruner="topk"), "Method: layers.layers: Field required; pruner.scorer"),
        (lambda: tp.ExperimentConfig(model="none"), "ExperimentConfig: model: unknown model 'none'"),
        (lambda: MethodEntry(name="fastw"), "MethodEntry: unknown method 'fastw'; did you mean 'fastv'"),
        (lambda: Norm(sginal="hidden"), "Norm: sginal: unknown key"),
        (lambda: TopK(scorer="rando"), "TopK: scorer: unknown scorer 'rando'; did you mean 'random'"),
        (
            lambda: tp.Method(layers=Fixed(layers=(1,)), pruner=TopK(scorer=Random()), budget=Adaptive()),
            "Method: budget Adaptive leaves the count to the pruner",
        ),
    ],
)
def test_direct_construction_raises_our_error(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_made_component_is_what_it_was() -> None:
    method = tp.load_method("fastv")
    assert pickle.loads(pickle.dumps(method)) == copy.deepcopy(method) == tp.Method.from_dict(method.model_dump())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: KeepRatio(ratio=True), "ratio: Input should be a valid number, got True"),
        (lambda: KeepRatio(ratio="0.5"), "write the number without quotes"),
        (lambda: KeepRatio(ratio=float("nan")), "ratio: "),
        (lambda: KeepCount(tokens=True), "tokens: Input should be a valid integer, got True"),
        (lambda: KeepCount(tokens=2.0), "tokens: Input should be a valid integer, got 2.0"),
        (lambda: Fixed(layers=[True]), r"layers\[0\]: Input should be a valid integer, got True"),
        (lambda: KeepSchedule(ratios=[True, 0.1]), r"ratios\[0\]: Input should be a valid number"),
        (lambda: MethodEntry(name="random", seeds=[False]), r"seeds\[0\]: "),
        (lambda: MethodEntry(name="random", label="a\0b"), "label: the text holds a NUL"),
        (lambda: MethodEntry(name="random", label="\ud800"), "label: the text holds a NUL or another"),
    ],
)
def test_numbers_are_strict_and_texts_can_be_stored(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_an_int_is_a_float() -> None:
    assert KeepRatio(ratio=1).ratio == 1.0


@pytest.mark.parametrize(
    "budget",
    [
        {"name": "keep_ratio", "ratio": 2},
        {"name": "keep_count", "tokens": "x"},
        {"name": "keep_schedule", "tokens": [0]},
        {"name": "keep_schedule", "ratios": "a"},
        {"name": "layer_average"},
    ],
)
def test_a_wrong_budget_is_one_mistake(budget: dict[str, object]) -> None:
    fields = {"model": {"name": "hf", "checkpoint": "x"}, "methods": ["random"], "output": "x", "budgets": [budget]}
    with pytest.raises(ConfigError) as caught:
        tp.ExperimentConfig.from_dict(fields)
    message = str(caught.value).replace("task: Field required; ", "")
    assert message.startswith("ExperimentConfig: budgets[0]")
    assert message.count("; ") == 0, message
    assert "uple" not in message
