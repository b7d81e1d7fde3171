"""Leverage scores against NumPy's singular value decomposition, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tokenprune.ops.leverage import leverage_scores


def literal(states: Tensor, variance: float, centred: bool = False) -> list[float]:
    """Singular values are added up one by one until their squares are the share."""
    rows = np.array([[float(value) for value in row] for row in states.tolist()], dtype=np.float64)
    if centred:
        rows = rows - rows.mean(0)
    left, values, _ = np.linalg.svd(rows, full_matrices=False)
    squares = [float(value) ** 2 for value in values]
    if sum(squares) == 0:
        return [0.0] * len(rows)
    k = 0
    while sum(squares[:k]) < (variance - 1e-9) * sum(squares) and squares[k] > 1e-12 * squares[0]:
        k += 1
        if k == len(squares):
            break
    return [sum(float(left[t, c]) ** 2 for c in range(k)) / k for t in range(len(rows))]


def check(states: Tensor, variance: float, centred: bool = False) -> list[float]:
    scores = leverage_scores(states[None], torch.ones(1, len(states), dtype=torch.bool), variance, centred)[0]
    expected = literal(states, variance, centred)
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-9)
    return expected


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("variance", [0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("tokens", "dim"), [(12, 5), (5, 12), (8, 8), (1, 4), (40, 3)])
def test_random_tokens(tokens: int, dim: int, variance: float, centred: bool) -> None:
    noise = torch.Generator().manual_seed(tokens)
    states = torch.randn(tokens, dim, generator=noise) * torch.logspace(-1, 1, dim) + 0.5
    scores = check(states, variance, centred)
    if tokens > 1 or not centred:
        assert sum(scores) == pytest.approx(1.0)


def test_by_hand() -> None:
    """Three directions with 16, 4 and 1 of 21 squares; the rank decides which tokens count."""
    states = torch.tensor([[4.0, 0, 0], [0, 2, 0], [0, 0, 1], [0, 0, 0]])
    valid = torch.ones(1, 4, dtype=torch.bool)
    for variance, expected in ((16 / 21, [1, 0, 0, 0]), (0.8, [0.5, 0.5, 0, 0]), (1.0, [1 / 3] * 3 + [0])):
        scores = leverage_scores(states[None], valid, variance)[0]
        torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("dim", [2, 16])
def test_few_directions_and_a_matrix_of_zeros(dim: int) -> None:
    """Directions that are rounding do not count, also where all of the variance is asked for."""
    noise = torch.Generator().manual_seed(0)
    states = torch.randn(7, 2, generator=noise) @ torch.randn(2, dim, generator=noise)
    check(states, 1.0)
    check(torch.zeros(7, dim), 0.9)
    check(torch.full((7, dim), 2.0), 0.9, centred=True)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("dim", [3, 20])
def test_images_do_not_affect_each_other(dim: int, centred: bool) -> None:
    """Padding is neither a token nor part of a mean; an image with an infinity is NaN and leaves the others alone."""
    states = torch.randn(5, 9, dim, generator=torch.Generator().manual_seed(0)) + 1
    sizes = [9, 4, 1, 0, 6]
    valid = torch.arange(9) < torch.tensor(sizes)[:, None]
    states[4, 2, 1] = torch.inf
    states[1, 5] = torch.nan  # padding
    scores = leverage_scores(states, valid, 0.9, centred)
    for number, size in enumerate(sizes[:4]):
        alone = leverage_scores(states[number : number + 1, :size], valid[number : number + 1, :size], 0.9, centred)[0]
        torch.testing.assert_close(scores[number, :size], alone, rtol=1e-9, atol=1e-12)
        assert (scores[number, size:] == 0).all()
    assert scores[4].isnan().all()


def test_a_rotation_of_the_channels_changes_nothing() -> None:
    noise = torch.Generator().manual_seed(0)
    states = torch.randn(1, 10, 6, generator=noise, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=noise, dtype=torch.float64))
    valid = torch.ones(1, 10, dtype=torch.bool)
    torch.testing.assert_close(leverage_scores(states @ turn, valid, 0.7), leverage_scores(states, valid, 0.7))
