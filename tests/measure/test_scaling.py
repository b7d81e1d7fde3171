"""Memory of scoring and selecting grows linearly with the visual tokens, never with their square."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.scaling import context, fresh
from tokenprune.measure.memory import peak_bytes
from tokenprune.ops.topk import topk_by_group
from tokenprune.scorers.base import Scorer
from tokenprune.scorers.matrix_entropy import MatrixEntropy
from tokenprune.scorers.norm import Norm
from tokenprune.scorers.random import Random

SCORERS = [MatrixEntropy(), MatrixEntropy(normalization="none"), MatrixEntropy(source="hidden"), Norm(), Random()]


def growth(measured: Callable[[int], Callable[[], object]], tokens: int) -> float:
    """By what peak memory grows when the tokens are four times as many."""
    small, large = (peak_bytes(measured(count), torch.device("cpu")) for count in (tokens, 4 * tokens))
    assert small > 0
    return large / small


@pytest.mark.parametrize("scorer", SCORERS, ids=repr)
def test_scores(scorer: Scorer) -> None:
    def measured(tokens: int) -> Callable[[], object]:
        ctx = context(2, tokens, heads=8, dim=16)
        return lambda: scorer.score(fresh(ctx))

    assert growth(measured, 1000) <= 4.5


@pytest.mark.parametrize("images", ["one", "many"])
def test_selection(images: str) -> None:
    """Also where a longer input means more images, not larger ones."""

    def measured(tokens: int) -> Callable[[], object]:
        count = 1 if images == "one" else tokens // 10
        groups = (torch.arange(tokens) * count // tokens).expand(2, -1).contiguous()
        return lambda: topk_by_group(torch.rand(2, tokens), groups, torch.ones(2, count, dtype=torch.long))

    assert growth(measured, 1000) <= 4.5


def test_the_measure_sees_a_square() -> None:
    assert growth(lambda tokens: lambda: torch.rand(tokens, 1) @ torch.rand(1, tokens), 100) > 12
