"""Matrix entropy against its definition, written out in float64 with loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tokenprune.errors import ConfigError
from tokenprune.ops.entropy import covariance_trace, matrix_entropy, state_entropy


def literal(states: Tensor, by_trace: bool) -> float:
    """The definition of one token: full covariance over the head dimension, all of its eigenvalues, no shortcut."""
    z = states.double().numpy()
    heads, dim = z.shape
    mean = np.zeros(dim)
    for h in range(heads):
        mean += z[h] / heads
    covariance = np.zeros((dim, dim))
    for h in range(heads):
        centred = z[h] - mean
        covariance += np.outer(centred, centred) / heads
    if by_trace:
        covariance /= np.trace(covariance)
    total = 0.0
    for value in np.linalg.eigvals(covariance).real:  # the general solver, not the symmetric one
        value = max(value, 1e-10)
        total -= value * math.log(value)
    return total if by_trace else total / math.log(heads)


@pytest.mark.parametrize(("heads", "dim"), [(9, 64), (32, 16), (4, 4), (2, 7), (28, 128)])
@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
def test_trace_mode_is_the_definition(heads: int, dim: int, scale: float) -> None:
    """float32 within 1e-4. The clamp adds up to dim * 2.3e-9, of which the dual form has fewer."""
    states = scale * torch.randn(12, heads, dim, generator=torch.Generator().manual_seed(heads))
    expected = torch.tensor([literal(token, True) for token in states])
    assert (matrix_entropy(states).double() - expected).abs().max() <= 1e-4
    exact = matrix_entropy(states.double())
    assert exact.dtype == torch.float64
    assert (exact - expected).abs().max() <= 1e-6


@pytest.mark.parametrize(("heads", "dim"), [(9, 64), (32, 16), (4, 4)])
@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
def test_reference_mode_is_the_definition(heads: int, dim: int, scale: float) -> None:
    states = scale * torch.randn(12, heads, dim, generator=torch.Generator().manual_seed(heads))
    expected = torch.tensor([literal(token, False) for token in states])
    found = matrix_entropy(states, "none")
    assert found.dtype == torch.float64
    assert ((found - expected).abs() / expected.abs().clamp(min=1)).max() <= 1e-7


def test_two_heads_by_hand() -> None:
    """Two heads have one direction left after centring: a single eigenvalue 1, entropy 0."""
    assert abs(float(matrix_entropy(torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 5.0]])))) <= 1e-6


def test_three_heads_by_hand() -> None:
    """Corners of an equilateral triangle: two equal eigenvalues 1/2, trace 1: entropy ln 2 in both modes."""
    corners = torch.tensor([[1.0, 0.0], [-0.5, 3**0.5 / 2], [-0.5, -(3**0.5) / 2]])
    assert float(matrix_entropy(corners.double())) == pytest.approx(math.log(2), abs=1e-8)
    assert float(matrix_entropy(corners, log_heads=True)) == pytest.approx(math.log(2) / math.log(3), abs=1e-6)
    assert float(matrix_entropy(corners, "none")) == pytest.approx(math.log(2) / math.log(3), abs=1e-6)
    # twice as large: eigenvalues 2 and 2 without normalisation, -2 * 2 ln 2
    assert float(matrix_entropy(2 * corners, "none")) == pytest.approx(-4 * math.log(2) / math.log(3), abs=1e-6)
    assert float(matrix_entropy(2 * corners.double())) == pytest.approx(math.log(2), abs=1e-8)


def test_the_two_modes_rank_differently() -> None:
    """Strong queries score high by trace no more than weak ones, and low without normalisation."""
    tokens = torch.randn(200, 9, 64, generator=torch.Generator().manual_seed(0))
    tokens = tokens * torch.linspace(0.2, 3, 200)[:, None, None]
    energy = tokens.square().sum((1, 2)).double()
    reference = torch.corrcoef(torch.stack([energy, matrix_entropy(tokens, "none")]))[0, 1]
    trace = torch.corrcoef(torch.stack([energy, matrix_entropy(tokens).double()]))[0, 1]
    assert reference < -0.9
    assert abs(trace) < 0.3


def test_rotary_embedding_does_not_change_the_score() -> None:
    """One rotation for all heads of a token, another for each token."""
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(50, 9, 64, generator=generator, dtype=torch.float64)
    angle = 6.28 * torch.rand(50, 1, 32, generator=generator, dtype=torch.float64)
    first, second = states[..., :32], states[..., 32:]
    turned = torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)
    assert not torch.allclose(turned, states)
    for mode in ("trace", "none"):
        assert (matrix_entropy(turned, mode) - matrix_entropy(states, mode)).abs().max() <= 1e-9


def test_heads_that_agree_have_no_entropy_and_nan_stays() -> None:
    states = torch.randn(3, 1, 8).expand(3, 5, 8).clone()
    states[1, 2, 3] = float("nan")
    found = matrix_entropy(states)
    assert found[0] == 0
    assert found[2] == 0
    assert found[1].isnan()
    assert matrix_entropy(states, "none")[1].isnan()
    assert matrix_entropy(torch.zeros(2, 4, 8)).tolist() == [0, 0]


def test_half_precision_input_and_leading_axes() -> None:
    states = torch.randn(2, 3, 9, 64).bfloat16()
    found = matrix_entropy(states)
    assert found.shape == (2, 3)
    assert found.dtype == torch.float32
    assert abs(float(found[1, 2]) - literal(states[1, 2].float(), True)) <= 1e-4
    assert matrix_entropy(torch.randn(0, 4, 8)).shape == (0,)


@pytest.mark.parametrize("heads", [28, 32])
def test_float32_keeps_the_same_tokens(heads: int) -> None:
    """The best quarter is that of the definition in float64, for several images and scales.

    Which of two tokens is better whose scores differ by less than the tolerance depends on how the processor rounds.
    """
    generator = torch.Generator().manual_seed(heads)
    for scale in (1e-12, 0.1, 1.0, 1e10):
        states = torch.randn(576, heads, 128, generator=generator) * scale
        shared = torch.randn(heads, 128, generator=generator) * scale
        for tokens in (states, states.bfloat16(), states + 10 * shared):
            exact, found = matrix_entropy(tokens.double()), matrix_entropy(tokens)
            assert (found - exact).abs().max() <= 2e-6
            best = exact.topk(145).values
            differ = set(found.topk(144).indices.tolist()) ^ set(exact.topk(144).indices.tolist())
            assert len(differ) <= 2
            assert all(float((exact[token] - best[-2:]).abs().min()) <= 4e-6 for token in differ)


def test_equal_eigenvalues() -> None:
    """Nothing to stretch: the four directions of a regular cross carry a quarter each."""
    cross = torch.cat([torch.eye(4), -torch.eye(4)])
    assert float(matrix_entropy(cross)) == pytest.approx(math.log(4), abs=1e-6)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    states = torch.randn(37, 6, 10)
    whole = matrix_entropy(states)
    monkeypatch.setattr("tokenprune.ops.entropy._CHUNK", 200)
    assert (matrix_entropy(states) - whole).abs().max() <= 1e-6


def test_state_entropy_is_the_definition() -> None:
    x = torch.randn(2, 20, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for sample in range(2):
        centred = (x[sample] - x[sample].mean(0)).numpy()
        rho = centred.T @ centred
        values = np.clip(np.linalg.eigvals(rho / np.trace(rho)).real, 1e-10, None)
        expected = -(values * np.log(values)).sum()
        assert float(state_entropy(x)[sample]) == pytest.approx(expected, abs=1e-7)


def test_state_entropy_leaves_padding_out() -> None:
    x = torch.randn(2, 9, 30, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 5:] = False
    garbage = x.clone()
    garbage[1, 5:] = float("nan")
    found = state_entropy(garbage, mask)
    assert float(found[1]) == pytest.approx(float(state_entropy(x[1, :5])), abs=1e-7)
    assert float(found[0]) == pytest.approx(float(state_entropy(x[0])), abs=1e-9)


# ---- a token's share of the entropy of its image ---------------------------------------------------------------


def literal_shares(states: Tensor) -> list[float]:
    """The covariance of every token, divided by the sum of all traces; its eigenvalues; minus l ln l."""
    matrices = []
    for token in states.double().numpy():
        centred = token - token.mean(0)
        matrices.append(centred.T @ centred / len(token))
    total = sum(float(np.trace(matrix)) for matrix in matrices)
    found = []
    for matrix in matrices:
        values = np.linalg.eigvalsh(matrix / total)
        found.append(-math.fsum(value * math.log(value) for value in values if value > 1e-9))
    return found


def shares(states: Tensor) -> Tensor:
    total = covariance_trace(states).sum().expand(len(states))
    return matrix_entropy(states, "image", total=total)


@pytest.mark.parametrize(("heads", "dim"), [(4, 16), (16, 4), (6, 6)])
def test_image_mode_is_the_definition(heads: int, dim: int) -> None:
    states = torch.randn(9, heads, dim, generator=torch.Generator().manual_seed(0))
    states[3] *= 5
    assert shares(states).tolist() == pytest.approx(literal_shares(states), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_image_mode_does_not_depend_on_the_scale(scale: float) -> None:
    """The published code's does: it turns round where eigenvalues pass 1/e."""
    states = (
        torch.randn(9, 4, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.5, 3, 9)[:, None, None]
    )
    assert shares(scale * states).tolist() == pytest.approx(shares(states).tolist(), rel=1e-6)
    energy = covariance_trace(states)
    small, large = (matrix_entropy(factor * states, "none") for factor in (1e-3, 1e3))
    assert torch.equal(small.argsort(), energy.argsort())
    assert torch.equal(large.argsort(), energy.argsort(descending=True))


def test_tokens_without_energy_have_no_share() -> None:
    """A newline token, and an image that has nothing else."""
    states = torch.randn(5, 4, 16, generator=torch.Generator().manual_seed(0))
    states[2] = 0
    found = shares(states)
    assert found[2] == 0
    assert (found[[0, 1, 3, 4]] > 0).all()
    assert shares(torch.zeros(5, 4, 16)).tolist() == [0.0] * 5


def test_the_image_is_named_in_its_mode_and_only_there() -> None:
    states = torch.randn(5, 4, 16)
    with pytest.raises(ConfigError, match="takes total with normalization 'image', and only there"):
        matrix_entropy(states, "image")
    with pytest.raises(ConfigError, match="takes total with normalization 'image', and only there"):
        matrix_entropy(states, "trace", total=torch.ones(5))
