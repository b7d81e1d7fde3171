"""Budgets in words: the kind always stands there, and nothing is guessed."""

from __future__ import annotations

import pytest

from tokenprune.budgets.base import Budget
from tokenprune.budgets.flops_reduction import FlopsReduction
from tokenprune.budgets.keep import DropAll, KeepCount, KeepRatio, KeepSchedule
from tokenprune.budgets.label import budget_label, in_words
from tokenprune.budgets.layer_average import LayerAverage


@pytest.mark.parametrize(
    ("budget", "label", "words"),
    [
        (LayerAverage(ratio=0.25), "layer_average 0.25", "25 % of the tokens, layer average"),
        (KeepRatio(ratio=0.25), "keep_ratio 0.25", "25 % of the tokens kept"),
        (LayerAverage(tokens=128), "layer_average 128", "128 tokens, layer average"),
        (KeepCount(tokens=128), "keep_count 128", "128 tokens kept"),
        (KeepCount(tokens=1), "keep_count 1", "1 token kept"),
        (KeepRatio(ratio=1.0), "keep_ratio 1", "100 % of the tokens kept"),
        (LayerAverage(ratio=0.2222), "layer_average 0.2222", "22.22 % of the tokens, layer average"),
        (FlopsReduction(percent=60), "flops_reduction 60 model", "60 % fewer FLOPs"),
        (
            FlopsReduction(percent=0.5, scope="decoder"),
            "flops_reduction 0.5 decoder",
            "0.5 % fewer FLOPs of the decoder",
        ),
        # nothing is guessed: one token, or all of them?
        (LayerAverage(tokens=1), "layer_average 1", "layer_average 1"),
        (LayerAverage(ratio=1.0), "layer_average 1", "layer_average 1"),
        (KeepSchedule(ratios=(0.5, 0.25)), "keep_schedule (0.5, 0.25)", "keep_schedule (0.5, 0.25)"),
        (DropAll(), "drop_all", "drop_all"),
    ],
)
def test_labels_and_words(budget: Budget, label: str, words: str) -> None:
    assert budget_label(budget) == label
    assert in_words(label) == words


@pytest.mark.parametrize("label", ["", "mine 0.5", "keep_ratio half", "keep_ratio 2", "keep_count 0.5"])
def test_what_is_no_label_of_ours_stays(label: str) -> None:
    assert in_words(label) == label


def test_a_printed_budget_has_its_kind() -> None:
    assert str(KeepRatio(ratio=0.25)) == "KeepRatio(ratio=0.25)"
    assert str(LayerAverage(tokens=9)).startswith("LayerAverage(tokens=9")


def test_a_time_is_a_share_of_the_prefill() -> None:
    assert in_words("prefill_time 0.5") == "50 % of the prefill time"
