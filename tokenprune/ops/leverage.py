"""Statistical leverage: how much each token contributes to the main directions of all tokens."""

import torch
from torch import Tensor

#: Eigenvalues up to this fraction of the largest are rounding: such directions do not exist.
_NEGLIGIBLE = 1e-12
#: A cumulative share that is below the wanted one by this much reaches it.
_ROUNDING = 1e-9


def leverage_scores(states: Tensor, valid: Tensor, variance: float, centred: bool = False) -> Tensor:
    """Leverage scores of the tokens of many images at once.

    With the singular value decomposition ``X = U S V^T`` of an image's tokens (one row each), ``k`` is the smallest
    number of singular values whose squares are the share ``variance`` of all squares or more, and the leverage of a
    token is the squared norm of its row in the first ``k`` columns of ``U``, divided by ``k``. The scores of an image
    sum to 1, or are all 0 if its matrix is 0. They do not depend on rotations of the channels. Where the k-th and the
    next singular value are equal, ``U`` is not unique, and rounding decides.

    ``U`` is computed from the eigenvectors of the smaller Gram matrix, in float64. ``eigh`` reads its error codes on
    CUDA, which synchronises host and device.

    Args:
        states: Floating ``[images, n, dim]``.
        valid: Entries that are tokens, bool ``[images, n]``; the others count as 0.
        variance: Share of the squared singular values, above 0, up to 1.
        centred: Whether the mean over an image's tokens is subtracted first.

    Returns:
        Float64 ``[images, n]``; 0 for padding, NaN in images with a NaN or an infinity.
    """
    states = states.double().masked_fill(~valid[:, :, None], 0.0)
    if centred:
        mean = states.sum(1, keepdim=True) / valid.sum(1).clamp(min=1)[:, None, None]
        states = (states - mean).masked_fill(~valid[:, :, None], 0.0)
    broken = ~states.isfinite().all(-1).all(-1)
    states = states.masked_fill(broken[:, None, None], 0.0)  # else eigh raises for the whole batch
    by_token = states.shape[1] <= states.shape[2]
    squares, vectors = torch.linalg.eigh(states @ states.mT if by_token else states.mT @ states)
    squares, vectors = squares.flip(-1).clamp(min=0.0), vectors.flip(-1)  # largest first
    real = squares > _NEGLIGIBLE * squares[:, :1]
    total = squares.sum(-1, keepdim=True)
    before = squares.cumsum(-1) - squares
    main = real & (before < (variance - _ROUNDING) * total)  # one more direction, until the share is reached
    left = vectors.square() if by_token else (states @ vectors).square() / torch.where(real, squares, 1.0)[:, None]
    scores: Tensor = (left * main[:, None]).sum(-1) / main.sum(-1, keepdim=True).clamp(min=1)
    return scores.masked_fill(~valid, 0.0).masked_fill(broken[:, None], torch.nan)
