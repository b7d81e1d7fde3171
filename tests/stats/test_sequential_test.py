"""The paired test of races: its error rate, and what it finds."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tokenprune.stats.sequential_test import PATTERNS, clearly_worse

LEVEL = 0.05
SEEDS = 200


def literal_p_value(losses: Tensor, candidate: int) -> float:
    """By enumeration of all signs, in plain Python."""
    others = [row for number, row in enumerate(losses.tolist()) if number != candidate]
    differences = [[a - b for a, b in zip(losses[candidate].tolist(), row, strict=True)] for row in others]
    norms = [sum(d * d for d in row) ** 0.5 for row in differences]

    def statistic(signs: tuple[int, ...]) -> float:
        sums = [sum(s * d for s, d in zip(signs, row, strict=True)) for row in differences]
        return max(total / norm for total, norm in zip(sums, norms, strict=True) if norm)

    observed = statistic((1,) * losses.shape[1])
    patterns = list(itertools.product((1, -1), repeat=losses.shape[1]))
    return sum(statistic(signs) >= observed - 1e-9 for signs in patterns) / len(patterns)


@pytest.mark.parametrize("seed", range(5))
def test_against_an_enumeration(seed: int) -> None:
    losses = torch.rand(4, 7, generator=torch.Generator().manual_seed(seed)) + torch.tensor([0, 0, 0.3, 0.6])[:, None]
    values = [literal_p_value(losses, candidate) for candidate in range(4)]
    for level in [0.01, 0.05, 0.2, *(value for value in values if value < 0.5)]:
        expected = [value <= level + 1e-12 for value in values]
        assert clearly_worse(losses, level + 1e-12).tolist() == expected


@pytest.mark.parametrize("samples", [8, 16, 40])
@pytest.mark.parametrize("kind", ["equal", "skewed", "agreement"])
def test_the_best_is_rarely_marked(samples: int, kind: str) -> None:
    """20 candidates, the first is planted as the best by nothing or a little; 200 seeds."""
    wrong = 0
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        common = torch.rand(1, samples, generator=generator)  # hard samples are hard for all
        noise = torch.rand(20, samples, generator=generator)
        if kind == "equal":
            losses = common + noise
        elif kind == "skewed":  # as divergences are: most are small, a few are large
            losses = common * noise.log().neg() ** 2
            losses[1:] += 0.02
        else:
            losses = (noise + 0.5 * common > torch.cat([torch.tensor([0.9]), torch.full((19,), 0.88)])[:, None]).float()
        wrong += bool(clearly_worse(losses, LEVEL, seed)[0])
    # three standard errors of a share of 200 above the stated rate
    assert wrong / SEEDS <= LEVEL + 3 * (LEVEL * (1 - LEVEL) / SEEDS) ** 0.5


def test_the_hopeless_are_marked_after_eight_samples() -> None:
    """Also at the level of one of three tests, and next to many candidates."""
    generator = torch.Generator().manual_seed(0)
    losses = 0.1 * torch.rand(30, 8, generator=generator)
    losses[10:] += 1
    assert clearly_worse(losses, 0.05 / 3).tolist() == [False] * 10 + [True] * 20


def test_nothing_to_say() -> None:
    assert not clearly_worse(torch.rand(3, 1), 0.5).any()
    assert not clearly_worse(torch.rand(1, 9), 0.5).any()
    assert not clearly_worse(torch.ones(4, 9), 0.5).any()


def test_random_patterns_are_those_of_the_seed() -> None:
    losses = torch.rand(5, 30, generator=torch.Generator().manual_seed(1)) + torch.linspace(0, 0.2, 5)[:, None]
    assert clearly_worse(losses, 0.05, 3).equal(clearly_worse(losses, 0.05, 3))


def test_random_patterns_prove_no_more_than_their_number() -> None:
    """The observed pattern counts as one of them: no p-value is zero."""
    losses = torch.cat([torch.zeros(1, 20), torch.ones(1, 20)])
    assert clearly_worse(losses, 1 / (PATTERNS + 1)).tolist() == [False, True]
    assert not clearly_worse(losses, 0.9 / (PATTERNS + 1)).any()
