"""Matrix (von Neumann) entropy of small sets of vectors, through the smaller of the two Gram matrices."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalization = Literal["trace", "none"]

FLOOR = 1e-10  # eigenvalues are clamped here before the logarithm
_CHUNK = 1 << 24  # Gram entries per call of eigvalsh: bounds the memory of large batches


def matrix_entropy(states: Tensor, normalization: Normalization = "trace", log_heads: bool = False) -> Tensor:
    r"""Entropy of the spectrum of each token's states across heads.

    With the centred states ``Z`` (``[heads, head_dim]``, mean over heads subtracted), the covariance ``Z^T Z / heads``
    and its dual ``Z Z^T / heads`` have the same nonzero eigenvalues; the smaller one is decomposed. The entropy is
    ``-sum(l * ln(l))``.

    Args:
        states: Floating ``[..., heads, head_dim]``.
        normalization: ``trace``: the matrix is divided by its trace, so that eigenvalues sum to one (the paper's
            definition). ``none``: it is not, the computation is in float64 and the sum is divided by ``ln(heads)``
            (what the authors' published code does).
        log_heads: Divide by ``ln(heads)`` in ``trace`` mode, too: scores from 0 to 1.

    Returns:
        ``[...]``, float32 (float64 for float64 input and in mode ``none``). A token whose heads all agree has
        entropy 0 in ``trace`` mode. NaN stays NaN.

    Source: "EntropyPrune: Matrix Entropy Guided Visual Token Pruning", arXiv 2602.17196.
    """
    heads, head_dim = states.shape[-2:]
    exact = normalization == "none" or states.dtype == torch.float64
    flat = states.reshape(-1, heads, head_dim)
    size = max(1, _CHUNK // min(heads, head_dim) ** 2)
    parts = [_entropy(part, normalization, exact) for part in flat.split(size)]
    entropy = torch.cat(parts) if parts else flat.new_zeros(0)
    if heads > 1 and (log_heads or normalization == "none"):
        entropy = entropy / torch.log(torch.tensor(float(heads), dtype=entropy.dtype, device=entropy.device))
    return entropy.reshape(states.shape[:-2])


def _entropy(states: Tensor, normalization: Normalization, exact: bool) -> Tensor:
    states = states.double() if exact else states.float()
    centred = states - states.mean(-2, keepdim=True)
    gram = smaller_gram(centred) / states.shape[-2]
    return spectrum_entropy(gram, by_trace=normalization == "trace")


def smaller_gram(states: Tensor) -> Tensor:
    """``Z Z^T`` or ``Z^T Z`` of ``[..., n, d]``, whichever is smaller: same nonzero eigenvalues."""
    count, dim = states.shape[-2:]
    gram: Tensor = states @ states.mT if count <= dim else states.mT @ states
    return gram


def spectrum_entropy(gram: Tensor, by_trace: bool) -> Tensor:
    """``-sum(l ln l)`` over the eigenvalues ``l`` of symmetric matrices ``[..., m, m]``.

    Args:
        gram: Positive semi-definite.
        by_trace: Divide by the trace first; a matrix whose trace vanishes has entropy 0.

    Returns:
        ``[...]``; NaN where the matrix holds a NaN or an infinity.
    """
    broken = ~gram.isfinite().all(-1).all(-1)
    gram = gram.masked_fill(broken[..., None, None], 0.0)  # eigvalsh would raise for the whole batch
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    empty = trace <= torch.finfo(gram.dtype).tiny
    if by_trace:
        gram = gram / torch.where(empty, 1.0, trace)[..., None, None]
    values = torch.linalg.eigvalsh(gram).clamp(min=FLOOR)
    entropy: Tensor = -(values * values.log()).sum(-1)
    if by_trace:
        entropy = entropy.masked_fill(empty, 0.0)
    return entropy.masked_fill(broken, float("nan"))


def state_entropy(states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Matrix entropy of a layer's visual hidden states, one number per sample.

    ``X`` is centred over tokens, ``rho = X^T X / trace``, and the entropy is ``-sum(l ln l)`` of its eigenvalues; the
    smaller of ``X^T X`` and ``X X^T`` is decomposed, in float64.

    Args:
        states: ``[..., n, dim]``.
        mask: Which tokens are real, bool ``[..., n]``.

    Returns:
        Float64 ``[...]``.

    Source: EntropyPrune, arXiv 2602.17196.
    """
    states = states.double()
    if mask is None:
        centred = states - states.mean(-2, keepdim=True)
    else:
        weight = mask[..., None].double()
        states = torch.where(mask[..., None], states, 0.0)
        centred = (states - states.sum(-2, keepdim=True) / weight.sum(-2, keepdim=True)) * weight
    return spectrum_entropy(smaller_gram(centred), by_trace=True)
