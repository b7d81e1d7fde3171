"""Farthest-point sampling, errors of rebuilding and overwriting against loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.literal import exact_vectors
from tokenprune.ops.rebuild import RIDGE, farthest_points, overwrite, random_shares, rebuild_errors


def literal_points(states: Tensor, share: float, count: int) -> list[int]:
    """Numbers of the points in the order in which they are taken; ties go to the smaller number."""
    rows = states.tolist()
    points = [int(share * len(rows))]
    while len(points) < min(count, len(rows)):
        nearest = [min(sum((a - b) ** 2 for a, b in zip(row, rows[p], strict=True)) for p in points) for row in rows]
        points.append(nearest.index(max(nearest)))
    return points


def literal_errors(states: Tensor, points: list[int]) -> list[float]:
    """One system of equations per token."""
    rows = np.array(states.tolist(), dtype=np.float64)
    basis = rows[points]
    left = basis @ basis.T + RIDGE * np.eye(len(points))
    return [float(np.linalg.norm(row - basis.T @ np.linalg.solve(left, basis @ row))) for row in rows]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
@pytest.mark.parametrize(("tokens", "dim", "count"), [(20, 6, 4), (20, 3, 10), (5, 8, 10), (1, 4, 3), (30, 16, 1)])
def test_random_tokens(tokens: int, dim: int, count: int, share: float) -> None:
    states = 3 * torch.randn(1, tokens, dim, generator=torch.Generator().manual_seed(tokens))
    everyone = torch.ones(1, tokens, dtype=torch.bool)
    points, exists = farthest_points(states, everyone, torch.tensor([share]), count)
    expected = literal_points(states[0], share, count)
    assert points[exists].tolist() == expected
    assert exists.sum() == min(count, tokens)
    errors = rebuild_errors(states, points, exists)[0]
    assert errors.tolist() == pytest.approx(literal_errors(states[0], expected), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("distinct", [1, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_duplicates_and_ties(seed: int, distinct: int) -> None:
    """Where copies are all that is left, the first token is taken again; copies have exactly equal errors."""
    states = exact_vectors(14, distinct, seed)
    points, exists = farthest_points(states[None], torch.ones(1, 14, dtype=torch.bool), torch.tensor([0.5]), 5)
    expected = literal_points(states, 0.5, 5)
    assert points[0].tolist() == expected
    errors = rebuild_errors(states[None], points, exists)[0]
    assert errors.tolist() == pytest.approx(literal_errors(states, expected), abs=1e-5)
    rows = states.tolist()
    for i in range(14):
        first = rows.index(rows[i])
        assert errors[i] == errors[first]


def test_images_do_not_affect_each_other() -> None:
    """Candidates in between others: the start is counted among them, and only they are taken."""
    noise = torch.Generator().manual_seed(0)
    states = torch.randn(4, 9, 5, generator=noise)
    candidates = torch.zeros(4, 9, dtype=torch.bool)
    taken = [[0, 2, 3, 5, 8], list(range(9)), [4], []]
    for image, own in enumerate(taken):
        candidates[image, own] = True
    states[0, 1] = 1e6
    shares = torch.tensor([0.5, 0.9, 0.7, 0.2])
    points, exists = farthest_points(states, candidates, shares, 4)
    errors = rebuild_errors(states, points, exists)
    for image, own in enumerate(taken):
        assert exists[image].sum() == min(4, len(own))
        if own:
            expected = literal_points(states[image, own], float(shares[image]), 4)
            assert points[image][exists[image]].tolist() == [own[i] for i in expected]
            wanted = literal_errors(states[image, own], expected)
            assert errors[image, own].tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        else:
            torch.testing.assert_close(errors[image], states[image].norm(dim=-1))  # nothing to rebuild from


def test_large_states_do_not_break_the_equations() -> None:
    """Two basis tokens that are almost copies, of the size of a language model's massive activations."""
    noise = torch.Generator().manual_seed(0)
    states = torch.randn(8, 16, generator=noise)
    states[:2] = 2000 * torch.ones(16) + 1e-3 * states[:2]
    points = torch.tensor([[0, 1, 4]])
    errors = rebuild_errors(states[None], points, torch.ones(1, 3, dtype=torch.bool))[0]
    assert errors.tolist() == pytest.approx(literal_errors(states, [0, 1, 4]), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_overwriting(share: float) -> None:
    noise = torch.Generator().manual_seed(0)
    states, rows, rank = torch.randn(3, 7, 2, generator=noise), torch.randn(3, 3, 2, generator=noise), torch.zeros(3, 7)
    rank[0] = torch.tensor([0.0, 5, 1, 9, 5, 0, 7])
    tokens = torch.zeros(3, 7, dtype=torch.bool)
    tokens[0, [1, 2, 4]] = tokens[1, [3, 5]] = True
    exists = torch.tensor([[True] * 3, [True, False, True], [True] * 3])
    made = overwrite(states, tokens, rank, rows, exists, share)
    expected = states.clone()
    for image, token, row in ((0, 1, 0), (0, 4, 1), (0, 2, 2), (1, 3, 0)):
        expected[image, token] = share * rows[image, row] + (1 - share) * states[image, token]
    torch.testing.assert_close(made, expected)
    assert torch.equal(overwrite(states, tokens, rank, rows[:, :0], exists[:, :0], share), states)
    wider = overwrite(states[:, :2], tokens[:, :2], rank[:, :2], rows, exists, share)  # more rows than tokens
    torch.testing.assert_close(wider[0, 1], share * rows[0, 0] + (1 - share) * states[0, 1])


def test_shares_belong_to_a_sample() -> None:
    shares = random_shares([[4, 4], [9], []], [5, 7, 8], 1, 2).view(3, 2)
    assert torch.equal(random_shares([[1]], [7], 1, 1), shares[1, :1])
    assert shares[1, 1] == 0
    assert (shares[2] == 0).all()
    assert ((shares >= 0) & (shares < 1)).all()
    assert len({*shares[0].tolist(), float(shares[1, 0]), float(random_shares([[1]], [7], 2, 1)[0])}) == 4


def test_nothing_waits_for_the_device() -> None:
    """The meta device has no values: whatever asks for one raises."""
    states, valid = torch.empty(2, 9, 5, device="meta"), torch.ones(2, 9, dtype=torch.bool, device="meta")
    points, exists = farthest_points(states, valid, torch.ones(2, device="meta"), 3)
    assert points.shape == exists.shape == (2, 3)
    assert overwrite(states, valid, states[..., 0], states[:, :3], exists, 1.0).shape == states.shape
