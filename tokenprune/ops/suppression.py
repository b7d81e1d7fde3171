"""Non-maximum suppression: of tokens that are alike, the one with the highest score stays."""

import torch
from torch import Tensor

from tokenprune.ops.gather import rows_at


def suppress(similarity: Tensor, scores: Tensor, groups: Tensor, threshold: Tensor) -> Tensor:
    """Mark the tokens that survive in their groups.

    In descending order of score, a token survives if no survivor of its group is more similar to it than the
    threshold. Ties: the earlier position goes first. No host-device synchronisation.

    Args:
        similarity: Floating ``[images, n, n]``.
        scores: Floating ``[images, n]``.
        groups: Group of each token, long ``[images, n]``; -1 for entries that are in none.
        threshold: Floating ``[images]``.

    Returns:
        Bool ``[images, n]``.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    ranked = rows_at(similarity, order)
    ranked = ranked.gather(2, order[:, None, :].expand_as(ranked))
    own = groups.gather(1, order)
    alike = (ranked > threshold[:, None, None]) & (own[:, :, None] == own[:, None, :])
    dropped = own < 0
    for rank in range(scores.shape[1] - 1):
        dropped[:, rank + 1 :] |= alike[:, rank, rank + 1 :] & ~dropped[:, rank, None]
    return torch.zeros_like(dropped).scatter(1, order, ~dropped)
