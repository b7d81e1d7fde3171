"""Matrix (von Neumann) entropy of small sets of vectors, computed from the smaller of the two Gram matrices."""

from typing import Literal

import torch
from torch import Tensor

from tokenprune.errors import ConfigError, MissingDataError, UnsupportedFeatureError

Normalization = Literal["trace", "image", "none"]
Backend = Literal["torch", "triton"]

FLOOR = 1e-10  # lower bound of eigenvalues before the logarithm
# Gram matrix entries per chunk on a CPU, so that a chunk stays in the CPU cache; 16 times as many elsewhere
_CHUNK = 1 << 17


def matrix_entropy(
    states: Tensor,
    normalization: Normalization = "trace",
    log_heads: bool = False,
    backend: Backend = "torch",
    total: Tensor | None = None,
) -> Tensor:
    r"""Matrix entropy of each token's states across heads.

    With the centred states ``Z`` (``[heads, head_dim]``, mean over heads subtracted), the covariance ``Z^T Z / heads``
    and its dual ``Z Z^T / heads`` have the same nonzero eigenvalues ``l``; the smaller matrix is decomposed. The
    entropy is ``-sum(l * ln(l))``.

    Args:
        states: Floating ``[..., heads, head_dim]``.
        normalization: ``trace``: the matrix is divided by its trace, so that eigenvalues sum to one (the paper's
            definition). ``image``: it is divided by ``total``, the sum of the traces of all tokens of the image; the
            computation is in float64. The eigenvalues of all tokens then sum to one, and each token has its share of
            the entropy of the image. ``none``: the matrix is not divided, the computation is in float64, and the
            entropy is divided by ``ln(heads)`` (the authors' published code).
        log_heads: Also divide by ``ln(heads)`` in mode ``trace``, which gives scores from 0 to 1.
        backend: ``triton``: our own kernel, one launch, float32, mode ``trace`` on CUDA only. It has **never run on a
            GPU**, only under Triton's interpreter. ``torch`` synchronises host and device on CUDA, because ``eigvalsh``
            reads its error codes.
        total: For mode ``image``: the sum of :func:`covariance_trace` over the image of each token, float64 ``[...]``.

    Returns:
        ``[...]``, float32 (float64 for float64 input and in modes ``image`` and ``none``). A token whose heads are all
        equal has entropy 0 in modes ``trace`` and ``image``. NaN stays NaN.

    Raises:
        ConfigError: Mode ``image`` without ``total``.
        UnsupportedFeatureError: The Triton kernel cannot score these states.
        MissingDataError: Triton is not installed.

    Source: "EntropyPrune: Matrix Entropy Guided Visual Token Pruning", arXiv 2602.17196.
    """
    heads, head_dim = states.shape[-2:]
    exact = normalization != "trace" or states.dtype == torch.float64
    if (total is None) == (normalization == "image"):
        raise ConfigError("matrix_entropy takes total with normalization 'image', and only there", "pass both or none")
    flat = states.reshape(-1, heads, head_dim)
    if total is not None:  # an image whose heads are all equal has a total of 0
        flat = flat.double() * torch.where(total > 0, total, 1.0).rsqrt().reshape(-1, 1, 1)
    entries = _CHUNK if states.device.type == "cpu" else 16 * _CHUNK
    chunks = max(1, -(-flat.shape[0] * min(heads, head_dim) ** 2 // entries))
    if backend == "triton":
        entropy = _by_triton(flat, exact)
    else:
        entropy = torch.cat([_entropy(chunk, normalization, exact) for chunk in flat.chunk(chunks)])
    if normalization == "image":  # the floor of the eigenvalues is no entropy
        entropy = entropy.masked_fill(covariance_trace(flat) == 0, 0.0)
    if heads > 1 and (log_heads or normalization == "none"):
        entropy = entropy / torch.log(torch.tensor(float(heads), dtype=entropy.dtype, device=entropy.device))
    return entropy.reshape(states.shape[:-2])


def _entropy(states: Tensor, normalization: Normalization, exact: bool) -> Tensor:
    states = states.double() if exact else states.float()
    gram = smaller_gram(states - states.mean(-2, keepdim=True))
    if normalization != "trace":
        gram = gram / states.shape[-2]
    return spectrum_entropy(gram, by_trace=normalization == "trace").to(states.dtype)


def covariance_trace(states: Tensor) -> Tensor:
    """Trace of each token's covariance across heads.

    Args:
        states: Floating ``[..., heads, head_dim]``.

    Returns:
        The sum of squares of the states minus their mean over heads, divided by the heads, float64 ``[...]``.
    """
    states = states.double()
    trace: Tensor = (states - states.mean(-2, keepdim=True)).square().sum((-2, -1)) / states.shape[-2]
    return trace


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
    """``Z Z^T`` or ``Z^T Z`` of ``[..., n, d]``, whichever is smaller; both have the same nonzero eigenvalues."""
    count, dim = states.shape[-2:]
    gram: Tensor = states @ states.mT if count <= dim else states.mT @ states
    return gram


def spectrum_entropy(gram: Tensor, by_trace: bool) -> Tensor:
    """``-sum(l ln l)`` over the eigenvalues ``l`` of symmetric matrices ``[..., m, m]``.

    Args:
        gram: Positive semidefinite, floating.
        by_trace: Divide by the trace first; a matrix of trace 0 has entropy 0.

    Returns:
        Float64 ``[...]``; NaN where the matrix holds a NaN or an infinity.
    """
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=torch.float64)
    broken = ~trace.isfinite()  # the largest entry is on the diagonal
    gram = gram.masked_fill(broken[..., None, None], 0.0)  # else eigvalsh raises for the whole batch
    values = torch.linalg.eigvalsh(gram).double()
    empty = trace <= torch.finfo(gram.dtype).tiny
    if by_trace:
        trace = torch.where(empty | broken, 1.0, trace)[..., None]
        values = values / trace
        if gram.dtype == torch.float32:
            values = _corrected(
                values, torch.linalg.vector_norm(gram, dim=(-2, -1), dtype=torch.float64)[..., None] / trace
            )
    values = values.clamp(min=FLOOR)
    entropy: Tensor = -(values * values.log()).sum(-1)
    if by_trace:
        entropy = entropy.masked_fill(empty, 0.0)
    return entropy.masked_fill(broken, float("nan"))


def _corrected(values: Tensor, norm: Tensor) -> Tensor:
    """Correct float32 eigenvalues by shifting and scaling them to their known sum (1) and L2 norm.

    Most of LAPACK's rounding error is common to all eigenvalues. The correction reduces the RMS error of the entropy
    from 3e-7 to 1e-7 and costs less than float64.

    Args:
        values: Eigenvalues of matrices of trace 1, float64 ``[..., m]``.
        norm: Frobenius norm of each matrix, float64 ``[..., 1]``.

    Returns:
        Float64 ``[..., m]``.
    """
    mean = 1 / values.shape[-1]
    deviation = values - values.mean(-1, keepdim=True)
    scale = (norm.square() - mean) / deviation.square().sum(-1, keepdim=True).clamp(min=1e-30)
    return mean + deviation * scale.clamp(0.9999, 1.0001).sqrt()  # outside: all eigenvalues are equal up to noise


def state_entropy(states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Matrix entropy of a layer's visual hidden states, one number per sample.

    ``X`` is centred over tokens, ``rho = X^T X / trace``, and the entropy is ``-sum(l ln l)`` of its eigenvalues; the
    smaller of ``X^T X`` and ``X X^T`` is decomposed in float64.

    Args:
        states: Floating ``[..., n, dim]``.
        mask: Entries that are tokens, bool ``[..., n]``; None: all.

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
