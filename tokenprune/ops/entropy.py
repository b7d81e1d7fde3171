"""Matrix (von Neumann) entropy of small sets of vectors, through the smaller of the two Gram matrices."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from tokenprune.errors import MissingDataError, UnsupportedFeatureError

Normalization = Literal["trace", "none"]
Backend = Literal["torch", "triton"]

FLOOR = 1e-10  # eigenvalues are clamped here before the logarithm
_CHUNK = 1 << 17  # Gram entries at a time on a CPU, where what is worked on then stays in the cache; 16 times elsewhere


def matrix_entropy(
    states: Tensor, normalization: Normalization = "trace", log_heads: bool = False, backend: Backend = "torch"
) -> Tensor:
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
        backend: ``triton``: one launch of our own kernel, in float32, mode ``trace`` on CUDA only. It has **never run
            on a GPU**, only under Triton's interpreter. On CUDA, ``torch`` makes the host wait (``eigvalsh`` looks at
            its error codes).

    Returns:
        ``[...]``, float32 (float64 for float64 input and in mode ``none``). A token whose heads all agree has
        entropy 0 in ``trace`` mode. NaN stays NaN.

    Raises:
        UnsupportedFeatureError: The Triton kernel cannot score these states.
        MissingDataError: Triton is not installed.

    Source: "EntropyPrune: Matrix Entropy Guided Visual Token Pruning", arXiv 2602.17196.
    """
    heads, head_dim = states.shape[-2:]
    exact = normalization == "none" or states.dtype == torch.float64
    flat = states.reshape(-1, heads, head_dim)
    entries = _CHUNK if states.device.type == "cpu" else 16 * _CHUNK
    chunks = max(1, -(-flat.shape[0] * min(heads, head_dim) ** 2 // entries))
    if backend == "triton":
        entropy = _by_triton(flat, exact)
    else:
        entropy = torch.cat([_entropy(part, normalization, exact) for part in flat.chunk(chunks)])
    if heads > 1 and (log_heads or normalization == "none"):
        entropy = entropy / torch.log(torch.tensor(float(heads), dtype=entropy.dtype, device=entropy.device))
    return entropy.reshape(states.shape[:-2])


def _entropy(states: Tensor, normalization: Normalization, exact: bool) -> Tensor:
    states = states.double() if exact else states.float()
    gram = smaller_gram(states - states.mean(-2, keepdim=True))
    if normalization == "none":
        gram = gram / states.shape[-2]
    return spectrum_entropy(gram, by_trace=normalization == "trace").to(states.dtype)


def _by_triton(states: Tensor, exact: bool) -> Tensor:
    try:
        from tokenprune.ops.entropy_triton import MAX_HEADS, trace_entropy
    except ImportError as error:
        raise MissingDataError("backend triton: triton is not installed", "pip install triton, or use torch") from error
    if exact or not states.is_cuda or states.shape[1] > MAX_HEADS:
        raise UnsupportedFeatureError(
            f"backend triton cannot score {states.dtype} states of {states.shape[1]} heads on {states.device.type}"
            + (" in float64" if exact else ""),
            f"it takes normalization trace, at most {MAX_HEADS} heads and 32 bits on cuda; or use backend torch",
        )
    entropy: Tensor = trace_entropy(states, FLOOR)
    return entropy


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
        Float64 ``[...]``; NaN where the matrix holds a NaN or an infinity.
    """
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=torch.float64)
    broken = ~trace.isfinite()  # no entry is larger than the largest of the diagonal
    gram = gram.masked_fill(broken[..., None, None], 0.0)  # eigvalsh would raise for the whole batch
    values = torch.linalg.eigvalsh(gram).double()
    empty = trace <= torch.finfo(gram.dtype).tiny
    if by_trace:
        trace = torch.where(empty | broken, 1.0, trace)[..., None]
        values = values / trace
        if gram.dtype == torch.float32:
            values = _sharpened(
                values, torch.linalg.vector_norm(gram, dim=(-2, -1), dtype=torch.float64)[..., None] / trace
            )
    values = values.clamp(min=FLOOR)
    entropy: Tensor = -(values * values.log()).sum(-1)
    if by_trace:
        entropy = entropy.masked_fill(empty, 0.0)
    return entropy.masked_fill(broken, float("nan"))


def _sharpened(values: Tensor, norm: Tensor) -> Tensor:
    """Eigenvalues from float32, shifted and stretched to what is known exactly: their sum is 1, and their L2 norm.

    Most of LAPACK's rounding error is common to all of them: this takes the entropy's error from 3e-7 to 1e-7 (RMS),
    for less than float64 costs.
    """
    mean = 1 / values.shape[-1]
    spread = values - values.mean(-1, keepdim=True)
    stretch = (norm.square() - mean) / spread.square().sum(-1, keepdim=True).clamp(min=1e-30)
    return mean + spread * stretch.clamp(0.9999, 1.0001).sqrt()  # beyond: all are equal, this is noise


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
