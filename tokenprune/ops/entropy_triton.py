"""Matrix entropy of all tokens in one launch of a Triton kernel; see :func:`trace_entropy`.

Each program scores one token and keeps its matrix in registers. It centres the heads, computes the Gram matrix, reduces
it to tridiagonal form by Householder reflections, and finds the eigenvalues by bisection with Sturm counts; each lane
searches for one eigenvalue.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_HEADS = 64
_STEP = 32  # feature columns per load


# Triton cannot index a tensor in registers: single entries are read by masked sums.
def _score(
    states: tl.tensor,
    out: tl.tensor,
    heads: tl.constexpr,
    dim: tl.constexpr,
    size: tl.constexpr,
    step: tl.constexpr,
    floor: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, size)
    row = index[:, None]
    column = index[None, :]

    gram = tl.zeros((size, size), dtype=tl.float32)
    for start in range(0, dim, step):
        feature = start + tl.arange(0, step)[None, :]
        inside = (row < heads) & (feature < dim)
        block = tl.load(states + token * heads * dim + row * dim + feature, mask=inside, other=0.0).to(tl.float32)
        block = tl.where(inside, block - tl.sum(block, 0)[None, :] / heads, 0.0)
        gram += tl.dot(block, tl.trans(block), input_precision="ieee")

    trace = tl.sum(tl.sum(tl.where(row == column, gram, 0.0), 1), 0)
    empty = trace <= 1.17549435e-38  # the smallest normal float32
    matrix = gram / tl.where(empty, 1.0, trace)

    for k in range(heads - 2):
        below = tl.sum(tl.where((column == k) & (row > k), matrix, 0.0), 1)
        first = tl.sum(tl.where(index == k + 1, below, 0.0), 0)
        norm = tl.sqrt(tl.sum(below * below, 0))
        mirror = tl.where(index == k + 1, below + tl.where(first < 0, -norm, norm), below)
        square = tl.sum(mirror * mirror, 0)
        scale = tl.where(square > 1e-30, 2.0 / tl.maximum(square, 1e-30), 0.0)  # a smaller vector is already zero
        image = scale * tl.sum(matrix * mirror[None, :], 1)
        image -= 0.5 * scale * tl.sum(image * mirror, 0) * mirror
        matrix -= mirror[:, None] * image[None, :] + image[:, None] * mirror[None, :]

    diagonal = tl.sum(tl.where(row == column, matrix, 0.0), 1)
    subdiagonal = tl.sum(tl.where(row == column + 1, matrix, 0.0), 1)
    subdiagonal = subdiagonal * subdiagonal

    low = tl.zeros((size,), dtype=tl.float32)  # all eigenvalues are in [0, 1]: positive semidefinite, trace 1
    high = tl.full((size,), 1.001, dtype=tl.float32)
    for _ in range(30):
        middle = 0.5 * (low + high)
        pivot = tl.full((size,), 1.0, dtype=tl.float32)
        smaller = tl.zeros((size,), dtype=tl.int32)
        for i in range(heads):
            diagonal_i = tl.sum(tl.where(index == i, diagonal, 0.0), 0)
            link_i = tl.sum(tl.where(index == i, subdiagonal, 0.0), 0)
            pivot = diagonal_i - middle - link_i / pivot
            pivot = tl.where(tl.abs(pivot) < 1e-30, -1e-30, pivot)
            smaller += (pivot < 0).to(tl.int32)
        above = smaller > index  # this lane's eigenvalue is below the midpoint
        high = tl.where(above, middle, high)
        low = tl.where(above, low, middle)

    value = tl.maximum(0.5 * (low + high), floor)
    entropy = -tl.sum(tl.where(index < heads, value * tl.log(value), 0.0), 0)
    entropy = tl.where(empty, 0.0, entropy)
    finite = tl.abs(trace) < float("inf")  # also False for NaN
    tl.store(out + token, tl.where(finite, entropy, float("nan")))


_kernel: Any = triton.jit(_score)


def trace_entropy(states: Tensor, floor: float) -> Tensor:
    """Entropy of the trace-normalised Gram matrix of each token, in float32, without host-device synchronisation.

    **This kernel has never run on a GPU.** It is tested under Triton's interpreter and compiled for sm_80 and sm_90; it
    has never been timed. Compare it with the default backend on your device before you rely on it.

    Args:
        states: Floating ``[tokens, heads, head_dim]`` on a CUDA device, at most ``MAX_HEADS`` heads.
        floor: Lower bound of eigenvalues before the logarithm.

    Returns:
        Float32 ``[tokens]``; NaN where the states hold a NaN or an infinity.
    """
    count, heads, dim = states.shape
    states = states.contiguous()
    out = torch.empty(count, dtype=torch.float32, device=states.device)
    if count:
        size = max(16, triton.next_power_of_2(heads))  # the minimum of tl.dot
        _kernel[(count,)](states, out, heads, dim, size, _STEP, floor, num_warps=1 if size <= 32 else 4)
    return out
